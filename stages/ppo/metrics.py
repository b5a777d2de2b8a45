"""What a person needs to see of a rollout. Means are over responses or tokens, as the name says.

Scores are the reward model's before any rule; the reward adds the KL penalty and the rules.
KL is of the policy from the reference, estimated from the sampled tokens.
"""

from torch import Tensor

from stages.ppo import objective
from stages.ppo.diagnostics import distinct_responses, repetition
from stages.ppo.rollout import Experience, Rollout
from stages.ppo.tally import Tally


def count_rollout(tally: Tally, rollout: Rollout) -> None:
    """Add score, KL, entropy, length, endings, repetition."""
    mask_BT = rollout.episodes.response_BT
    k1_BT = objective.kl_k1(rollout.old_BT, rollout.reference_BT)
    kl_B = k1_BT.sum(-1)
    tally.add_all("ppo/score", rollout.score_B)
    tally.add_all("ppo/kl_nats", kl_B)
    tally.add_all("ppo/kl_squared", kl_B.square())
    tally.add_all("ppo/kl_nats_per_token", k1_BT[mask_BT])
    tally.add_all(
        "ppo/kl_k3_nats_per_token",
        objective.kl_k3(rollout.old_BT[mask_BT], rollout.reference_BT[mask_BT]),
    )
    tally.add_all("ppo/entropy_nats_per_token", rollout.entropy_BT[mask_BT])
    tally.add_all("ppo/response_tokens", mask_BT.sum(-1))
    tally.add_all("ppo/eos_rate", rollout.episodes.ended_B)
    repeated = repetition(rollout.episodes)
    tally.add("ppo/repetition", sum(repeated), len(repeated))
    tally.add("ppo/distinct_responses", distinct_responses(rollout.episodes), len(repeated))


def count_rewards(tally: Tally, reward_BT: Tensor) -> None:
    """Add what a whole response earns: its score after the rules, less the KL penalty."""
    tally.add_all("ppo/reward", reward_BT.sum(-1))


def count_sampler(tally: Tally, rollout: Rollout) -> None:
    """Add how far the sampler's own log-probabilities are from those of the training path."""
    gap_BT = (rollout.sampler_BT - rollout.old_BT).abs()
    tally.add_all("ppo/sampler_gap_nats_per_token", gap_BT[rollout.episodes.response_BT])


def explained_variance(data: Experience) -> float:
    """Of the returns by the values before the update, over all tokens."""
    mask_BT = data.episodes.response_BT
    return_N, value_N = data.return_BT[mask_BT], data.value_BT[mask_BT]
    residual_3 = objective.moments(return_N - value_N)
    return float(objective.explained_variance(residual_3, objective.moments(return_N)))


def with_standard_error(means: dict[str, float], episodes: int) -> dict[str, float]:
    """Turn the mean square of the KL into the standard error of its mean."""
    spread = means.pop("ppo/kl_squared") - means["ppo/kl_nats"] ** 2
    return means | {"ppo/kl_standard_error_nats": (max(spread, 0.0) / episodes) ** 0.5}
