"""Choosing the policy by what its user has: score and KL on validation prompts, no gold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from stages.ppo.learner import Learner
from stages.ppo.rollout import Rollout
from stages.ppo.shares import answered
from stages.ppo.tally import Tally
from stages.seeding import EVERY_RANK, generator_for


@dataclass(frozen=True, slots=True)
class Best:
    """The weights with the highest validation score so far, and the iteration they come from."""

    score: float
    iteration: int
    weights: Mapping[str, Tensor]


def validate(learner: Learner, prompts: Sequence[list[int]]) -> dict[str, float]:
    """Mean score and KL (nats a response) of the result's weights, by the same draws every time."""
    rollout, tally = answer(learner, prompts), Tally()
    tally.add_all("ppo/validation_score", rollout.score_B)
    tally.add_all("ppo/validation_kl_nats", (rollout.old_BT - rollout.reference_BT).sum(-1))
    return tally.means(learner.total)


def answer(learner: Learner, prompts: Sequence[list[int]]) -> Rollout:
    """The prompts, answered by the result's weights and read by all models.

    The draws are the same every time.
    """
    with learner.result_weights():
        return answered(learner, prompts, generator_for(learner.seed, "validation", EVERY_RANK))
