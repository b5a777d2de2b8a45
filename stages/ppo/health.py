"""Metrics of a rollout, and the checks on them that stop a run or take it back.

`preflight` checks before the first rollout; `alarms` checks every iteration's metrics against the
config's limits; the other checks hold by construction and stop the run wherever they fail. Each
says the likely cause and the setting to change.

Scores are the reward model's before any rule; the reward adds the KL penalty and the rules. KL is
of the policy from the reference, estimated from the sampled tokens.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from reward_models.backbone import Backbone, transformer
from reward_models.context_limit import ContextLimit, max_positions
from reward_models.model import RewardModel
from stages.data.template import stop_ids
from stages.ppo import losses
from stages.ppo.config import HealthChecks, PPOConfig
from stages.ppo.models import Models
from stages.ppo.rollout import Episodes, Experience, Rollout

_TRIGRAM = 3
_ROUNDING_NATS = 1e-5  # a token
_KL_SLACK_NATS = 0.1  # a response; below it a negative KL is no alarm
_WATCHED = (  # a metric, the setting of its limit, and what to do where it is crossed
    (
        "ppo/kl_nats_per_token",
        "max_kl_nats_per_token",
        "the policy moves away from the reference; raise kl.coefficient or lower learning_rate",
    ),
    (
        "ppo/eos_rate",
        "min_eos_rate",
        "responses do not end, so the score may favour length; set missing_eos_score, or raise "
        "sampling.max_new_tokens",
    ),
    (
        "ppo/entropy_nats_per_token",
        "min_entropy_nats",
        "the policy has collapsed; raise kl.coefficient or lower learning_rate",
    ),
    (
        "ppo/repetition",
        "max_repetition",
        "the reward model likes loops; raise kl.coefficient",
    ),
    (
        "ppo/distinct_responses",
        "min_distinct",
        "one answer to every prompt; raise kl.coefficient, or see how that answer is scored",
    ),
    (
        "ppo/length_growth",
        "max_length_growth",
        "responses grow, so the score favours length; raise kl.coefficient, or compare score and "
        "length in the reward model's held_out.json",
    ),
)


class UnhealthyRunError(ValueError):
    """A run that was stopped because continuing would have spoilt the policy."""


class RecoverableRunError(UnhealthyRunError):
    """An instability that smaller steps from an earlier checkpoint may avoid."""


class MetricSums:
    """Metrics summed over everything that was counted, to be averaged over all ranks."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, total: Tensor | float, count: float = 1.0) -> None:
        """Add `total`, a sum over `count` items."""
        pair = torch.tensor([0.0, count], dtype=torch.float64)
        pair[0] = float(total)
        self._sums[name] = self._sums.get(name, torch.zeros(2, dtype=torch.float64)) + pair

    def add_all(self, name: str, x: Tensor) -> None:
        """Add every element of `x`."""
        self.add(name, x.double().sum(), x.numel())

    def averages(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means over all ranks."""
        names = sorted(self._sums)
        table = sum_over_ranks(torch.stack([self._sums[name] for name in names]))
        return {name: float(s / n) for name, (s, n) in zip(names, table, strict=True)}


def add_sampler_gap(sums: MetricSums, rollout: Rollout, cap: float | None) -> None:
    """Add how far the sampler's log-probabilities are from the policy's, and the weights for it."""
    mask_BT = rollout.episodes.response_BT
    old_N, sampler_N = rollout.old_BT[mask_BT], rollout.sampler_BT[mask_BT]
    sums.add_all("ppo/sampler_gap_nats_per_token", (sampler_N - old_N).abs())
    if cap is not None:
        weight_N = losses.importance_weights(old_N, sampler_N, cap=cap)
        sums.add_all("ppo/importance_weight", weight_N)
        sums.add_all("ppo/importance_truncated", (old_N - sampler_N).exp() > cap)


def add_rollout(sums: MetricSums, rollout: Rollout, reward_BT: Tensor) -> None:
    """Add score, reward, KL, entropy, length, endings and repetition of a rollout."""
    mask_BT, episodes = rollout.episodes.response_BT, rollout.episodes
    k1_BT = losses.kl_k1(rollout.old_BT, rollout.reference_BT)
    k3_N = losses.kl_k3(rollout.old_BT[mask_BT], rollout.reference_BT[mask_BT])
    sums.add_all("ppo/score", rollout.score_B)
    sums.add_all("ppo/reward", reward_BT.sum(-1))
    sums.add_all("ppo/kl_nats", k1_BT.sum(-1))
    sums.add_all("ppo/kl_squared", k1_BT.sum(-1).square())
    sums.add_all("ppo/kl_nats_per_token", k1_BT[mask_BT])
    sums.add_all("ppo/kl_k3_nats_per_token", k3_N)
    sums.add_all("ppo/entropy_nats_per_token", rollout.entropy_BT[mask_BT])
    sums.add_all("ppo/response_tokens", mask_BT.sum(-1))
    sums.add_all("ppo/eos_rate", episodes.ended_B)
    repeated = repetition(episodes)
    sums.add("ppo/repetition", sum(repeated), len(repeated))
    sums.add("ppo/distinct_responses", distinct_responses(episodes), len(repeated))


def experience_moments(data: Experience) -> dict[str, float]:
    """Moments of values, returns and advantages (unwhitened), and the explained variance."""
    mask_BT = data.episodes.response_BT
    value_N, return_N = data.value_BT[mask_BT], data.return_BT[mask_BT]
    metrics = {"ppo/explained_variance": float(losses.explained_variance(value_N, return_N))}
    for name, x_N in (
        ("value", value_N),
        ("return", return_N),
        ("advantage", return_N - value_N),
    ):
        mean, variance = losses.mean_and_variance(x_N)
        metrics |= {f"ppo/{name}_mean": float(mean), f"ppo/{name}_variance": float(variance)}
    return metrics


def with_standard_error(metrics: dict[str, float], episodes: int) -> dict[str, float]:
    """Turn the mean square of the KL into the standard error of its mean."""
    variance = metrics.pop("ppo/kl_squared") - metrics["ppo/kl_nats"] ** 2
    return metrics | {"ppo/kl_standard_error_nats": (max(variance, 0.0) / episodes) ** 0.5}


def repetition(episodes: Episodes) -> list[float]:
    """The share of each response's trigrams that occur earlier in it; 0 where it has none."""

    def repeated(tokens: list[int]) -> float:
        trigrams = [tuple(tokens[i : i + _TRIGRAM]) for i in range(len(tokens) - _TRIGRAM + 1)]
        return 1.0 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0

    return [repeated(response) for response in episodes.responses()]


def distinct_responses(episodes: Episodes) -> int:
    """The number of different responses."""
    return len({tuple(response) for response in episodes.responses()})


def preflight(models: Models, config: PPOConfig, prompts: Sequence[list[int]]) -> None:
    """Raise ValueError where PPO could not work: padding, dropout, prompts that are too long."""
    tokenizer = models.tokenizer
    if tokenizer.pad_token_id in stop_ids(tokenizer, models.policy):
        raise ValueError(
            f"PAD and EOS of tokenizer '{tokenizer.name_or_path}' are both {tokenizer.pad_token}; "
            "expected a PAD of its own"
        )
    for name, model in (("policy", models.policy), ("critic", models.critic)):
        # Attention drops out by its own flag, so any module in training mode counts.
        live = [part for part, module in model.named_modules() if module.training]
        if live:
            raise ValueError(
                f"dropout is on in the {name} ({live[-1] or 'all of it'}); PPO needs it off"
            )
    longest = max(map(len, prompts)) + config.sampling.max_new_tokens
    what = f"the longest prompt and sampling.max_new_tokens ({config.sampling.max_new_tokens})"
    backbones: dict[str, Backbone] = {"policy": models.policy}
    if isinstance(models.reward, RewardModel):
        backbones["reward model"] = models.reward.backbone
    for name, backbone in backbones.items():
        limit = max_positions(transformer(backbone).config)
        ContextLimit(f"the {name}", limit).require(longest, what)


def check_first_ratio(error: float, compute: torch.dtype, policy: nn.Module) -> None:
    """Stop unless the ratio is 1 before the first step, to 1e-5 (to 1e-2 in 16 bits or fewer)."""
    dtypes = {p.dtype for p in policy.parameters()} | {compute}
    tolerance = 1e-5 if dtypes <= {torch.float32, torch.float64} else 1e-2
    if not error <= tolerance:
        raise UnhealthyRunError(
            f"at the first minibatch the ratio of new to old probabilities is off 1 by {error:.2g} "
            f"(allowed {tolerance:g}): the policy's outputs are not those of the rollout; look for "
            "dropout, padding without explicit positions, another sampling.temperature, or weights "
            "that changed in between"
        )


def check_starting_kl(log_ratio_BT: Tensor) -> None:
    """Stop unless policy and reference are the same model before the first update.

    Two copies of one matrix, at two places in memory, may be multiplied in two orders: a difference
    of one rounding (2.4e-7 seen with MKL) is none of the weights.
    """
    worst = float(log_ratio_BT.abs().max())
    if not worst <= _ROUNDING_NATS:
        raise UnhealthyRunError(
            f"before the first update policy and reference differ by up to {worst:.2g} nats a "
            "token, expected 0: the reference is not a snapshot of the policy"
        )


def check_finite(rollout: Rollout) -> None:
    """Stop before the update where a score, a value or a log-probability is not finite."""
    for name, x, advice in (
        ("scores", rollout.score_B, "the reward model is broken on them; look at the responses"),
        ("log-probabilities", rollout.old_BT, "the policy's weights are spoilt"),
        ("values", rollout.value_BT, "the critic's are spoilt; lower critic_learning_rate"),
    ):
        bad = int((~x.isfinite()).reshape(len(x), -1).any(-1).sum())
        if bad:
            raise UnhealthyRunError(
                f"{name} of {bad} of {len(x)} responses are not finite: {advice}"
            )


def alarms(metrics: Mapping[str, float], checks: HealthChecks) -> list[str]:
    """One sentence for each sign of instability in an iteration's metrics."""
    not_finite = [name for name, value in metrics.items() if not math.isfinite(value)]
    if not_finite:
        return [f"{', '.join(not_finite)} not finite: lower learning_rate or set score_clip"]
    limits, sentences = checks.model_dump(), []
    for metric, setting, advice in _WATCHED:
        value, limit = metrics[metric], limits[setting]
        is_upper = setting.startswith("max_")
        if (value > limit) if is_upper else (value < limit):
            sentences.append(
                f"{metric} is {value:.3g}, {'above' if is_upper else 'below'} "
                f"health.{setting} ({limit:g}): {advice}"
            )
    mismatch = negative_kl(metrics)
    return sentences if mismatch is None else [*sentences, mismatch]


def negative_kl(metrics: Mapping[str, float]) -> str | None:
    """A sentence where the KL is below 0 by more than chance, which smaller steps do not cure."""
    kl, error = metrics["ppo/kl_nats"], metrics["ppo/kl_standard_error_nats"]
    if kl < -max(_KL_SLACK_NATS, 4 * error):
        return (
            f"ppo/kl_nats is {kl:.3g}, below 0 by more than chance: what is sampled is not what is "
            "trained; check sampling.temperature and the reference"
        )
    return None
