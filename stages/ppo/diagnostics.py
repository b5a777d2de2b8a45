"""What goes wrong in PPO, found early, with its likely cause and the setting to change.

`preflight` looks before the first rollout; `alarms` looks at every iteration's metrics; the other
checks hold by construction and stop the run wherever they fail.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from reward_models.backbone import transformer
from reward_models.context_limit import ContextLimit, max_positions
from stages.data.template import stop_ids
from stages.ppo.config import Guards, PPOConfig
from stages.ppo.episodes import Episodes
from stages.ppo.models import Models
from stages.ppo.rollout import Rollout

_TRIGRAM = 3
_ROUNDING_NATS = 1e-5  # a token
_KL_SLACK_NATS = 0.1  # a response; below it a negative KL is no alarm
_WATCHED = (  # a metric, the setting of its limit, and what to do where it is crossed
    (
        "ppo/kl_nats_per_token",
        "max_kl_nats_per_token",
        "the policy runs away from the reference; raise kl.coefficient or lower learning_rate",
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
    """A run that was stopped because going on would have spoilt the policy."""


class RecoverableRunError(UnhealthyRunError):
    """A sickness that smaller steps from an earlier checkpoint may avoid."""


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
    for name, carrier in (("policy", models.policy), ("reward model", models.reward.backbone)):
        ContextLimit(f"the {name}", max_positions(transformer(carrier).config)).require(
            longest, what
        )


def check_first_ratio(error: float, mixed_precision: str, policy: nn.Module) -> None:
    """Stop unless the ratio is 1 before the first step, to 1e-5 (to 1e-2 in 16 bits)."""
    dtypes = {p.dtype for p in policy.parameters()}
    whole = mixed_precision == "no" and dtypes <= {torch.float32, torch.float64}
    tolerance = 1e-5 if whole else 1e-2
    if not error <= tolerance:
        raise UnhealthyRunError(
            f"at the first minibatch the ratio of new to old probabilities is off 1 by {error:.2g} "
            f"(allowed {tolerance:g}): the policy is not read as it was when the rollout was "
            "scored; look for dropout, padding without explicit positions, another "
            "sampling.temperature, or weights that changed in between"
        )


def check_starting_kl(log_ratio_N: torch.Tensor) -> None:
    """Stop unless policy and reference are the same model before the first update.

    Two copies of one matrix, at two places in memory, may be multiplied in two orders: a difference
    of one rounding (2.4e-7 seen with MKL) is none of the weights.
    """
    worst = float(log_ratio_N.abs().max())
    if not worst <= _ROUNDING_NATS:
        raise UnhealthyRunError(
            f"before the first update policy and reference differ by up to {worst:.2g} nats a "
            "token, expected 0: the reference is not a snapshot of the policy"
        )


def check_finite(rollout: Rollout) -> None:
    """Stop before the update where a score, a value or a log-probability is not finite."""
    for name, x, advice in (
        ("scores", rollout.score_B, "the reward model is broken on them; see what they answer"),
        ("log-probabilities", rollout.old_BT, "the policy's weights are spoilt"),
        ("values", rollout.value_BT, "the critic's are spoilt; lower critic_learning_rate"),
    ):
        sick = int((~x.isfinite()).reshape(len(x), -1).any(-1).sum())
        if sick:
            raise UnhealthyRunError(
                f"{name} of {sick} of {len(x)} responses are not finite: {advice}"
            )


@dataclass(frozen=True, slots=True)
class Limit:
    """A metric that must stay on one side of a setting, and what to do when it does not."""

    metric: str
    setting: str
    bound: float
    upper: bool
    advice: str

    def crossed(self, metrics: Mapping[str, float]) -> str | None:
        """A sentence with the metric, the setting and the advice, or None while all is well."""
        value = metrics[self.metric]
        if (value > self.bound) if self.upper else (value < self.bound):
            side = "above" if self.upper else "below"
            where = f"guards.{self.setting} ({self.bound:g})"
            return f"{self.metric} is {value:.3g}, {side} {where}: {self.advice}"
        return None


def limits(guards: Guards) -> list[Limit]:
    """The limits that the settings name."""
    bounds = guards.model_dump()
    return [
        Limit(metric, setting, bounds[setting], setting.startswith("max_"), advice)
        for metric, setting, advice in _WATCHED
    ]


def alarms(metrics: Mapping[str, float], guards: Guards) -> list[str]:
    """One sentence for each sign of sickness in an iteration's metrics."""
    sick = [name for name, value in metrics.items() if not math.isfinite(value)]
    if sick:
        return [f"{', '.join(sick)} not finite: lower learning_rate or set score_clip"]
    found = [sentence for limit in limits(guards) if (sentence := limit.crossed(metrics))]
    mismatch = negative_kl(metrics)
    return found if mismatch is None else [*found, mismatch]


def negative_kl(metrics: Mapping[str, float]) -> str | None:
    """A sentence where the KL is below 0 by more than chance, which no smaller step would mend."""
    kl, error = metrics["ppo/kl_nats"], metrics["ppo/kl_standard_error_nats"]
    if kl < -max(_KL_SLACK_NATS, 4 * error):
        return (
            f"ppo/kl_nats is {kl:.3g}, below 0 by more than chance: what is sampled is not what is "
            "trained; check sampling.temperature and the reference"
        )
    return None


def repetition(episodes: Episodes) -> list[float]:
    """Of each response, the share of trigrams that already stood in it; 0 where it has none."""
    return [_repeated(response) for response in responses_of(episodes)]


def distinct_responses(episodes: Episodes) -> int:
    """How many different responses there are."""
    return len({tuple(response) for response in responses_of(episodes)})


def responses_of(episodes: Episodes) -> list[list[int]]:
    """The token ids of each response, without padding."""
    counts = episodes.response_BT.sum(-1).tolist()
    rows = episodes.response_tokens().tolist()
    return [row[len(row) - n :] for row, n in zip(rows, counts, strict=True)]


def _repeated(tokens: list[int]) -> float:
    trigrams = [tuple(tokens[i : i + _TRIGRAM]) for i in range(len(tokens) - _TRIGRAM + 1)]
    return 1.0 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0
