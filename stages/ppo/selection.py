"""Choosing the policy by what its user has: score and KL on validation prompts, no gold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from stages.ppo.learner import Learner
from stages.ppo.randomness import generator_for
from stages.ppo.rollout import read_episodes, roll_out
from stages.ppo.tally import Tally


@dataclass(frozen=True, slots=True)
class Best:
    """The weights with the highest validation score so far, and the iteration they come from."""

    score: float
    iteration: int
    weights: Mapping[str, Tensor]


def validate(learner: Learner, prompts: Sequence[list[int]]) -> dict[str, float]:
    """Mean score and KL (nats a response) of the result's weights, by the same draws every time."""
    accelerator, sampling = learner.accelerator, learner.config.sampling
    mine = prompts[accelerator.process_index :: accelerator.num_processes]
    generator = generator_for(learner.seed, "validation", accelerator.process_index)
    tally = Tally()
    with learner.result_weights(), accelerator.autocast():
        episodes = roll_out(learner.models, mine, sampling, generator)
        rollout = read_episodes(
            learner.models,
            episodes,
            temperature=sampling.temperature,
            batch_size=learner.config.micro_batch_size,
        )
    tally.add_all("ppo/validation_score", rollout.score_B)
    tally.add_all("ppo/validation_kl_nats", (rollout.old_BT - rollout.reference_BT).sum(-1))
    return tally.means(learner.total)
