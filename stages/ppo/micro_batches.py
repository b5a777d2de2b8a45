"""How many episodes a rank reads at once: as many as its memory holds, or as it was told.

What a pass back and forth takes is found by a dry run (`stages.distributed.memory`) at the longest
prompt with responses of the full length, so no micro-batch of the run takes more; how much is free
is asked of the machine once everything else is there. So nothing has to run out of memory to find
the size.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor

from stages.distributed.memory import USED, Cost, cost_of, free_memory, usable
from stages.distributed.network import Network
from stages.generation.generate import Sampled
from stages.ppo import objective
from stages.ppo.config import PPOConfig
from stages.ppo.episodes import Episodes
from stages.ppo.lower_states import LowerStates
from stages.ppo.models import Models
from stages.ppo.pretraining import pretraining_nll
from stages.ppo.reading import Layout, lay_out
from stages.ppo.shared_passes import critic_values, policy_logits, values

NOTHING = Cost(0, 1)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What a rank reads at once: so many episodes, so many examples of pretraining text."""

    episodes: int
    examples: int

    @classmethod
    def told(cls, config: PPOConfig, ranks: int) -> "MicroBatch":
        """A rank's share of a minibatch, in the parts that the config tells."""
        episodes, examples = config.minibatch // ranks, 1
        if config.pretraining is not None:
            drawn = max(1, round(config.pretraining.examples_per_episode * config.minibatch))
            examples = -(-drawn // ranks)
        if config.micro_batch_size == "auto":
            return cls(episodes, examples)
        size = config.micro_batch_size
        return cls(min(episodes, size), min(examples, size))

    def at_most(self, other: "MicroBatch") -> "MicroBatch":
        """The smaller one of each."""
        return MicroBatch(min(self.episodes, other.episodes), min(self.examples, other.examples))


@dataclass(frozen=True, slots=True)
class UpdateCost:
    """Of the passes that an update makes over episodes and over pretraining examples."""

    episodes: Cost
    examples: Cost


def fitting(
    cost: UpdateCost, config: PPOConfig, accelerator: Accelerator, to_come: int
) -> MicroBatch:
    """The most that every rank has memory for, but at least one prompt's responses.

    `to_come` are bytes that an update needs beside its passes and that are still free.
    """
    together, free = config.responses_per_prompt, free_memory(accelerator.device)
    room = usable(free, to_come)
    rows = [cost.episodes.rows(room) // together * together, cost.examples.rows(room)]
    if rows[0] < together or rows[1] < 1:
        needed = max(cost.episodes.bytes(together), cost.examples.bytes(1)) / USED + to_come
        log.warning(
            "memory may not suffice: %.3g GiB is free, and the smallest update needs %.3g GiB",
            *(free / 2**30, needed / 2**30),
        )
    rows_R2 = accelerator.gather(torch.tensor([rows], device=accelerator.device))
    episodes, examples = rows_R2.amin(0).tolist()
    return MicroBatch(max(together, episodes), max(1, examples))


def bytes_to_come(networks: Iterable[Network], lower: LowerStates, tokens: int) -> int:
    """What an update will hold that is not there before the first one, its passes aside.

    Adam's moments of what this rank trains, and what the lower layers say of so many tokens.
    """
    trained = [x for network in networks for x in network.shards().values()]
    return 2 * sum(x.numel() * x.element_size() for x in trained) + tokens * lower.bytes_a_token


def update_cost(
    models: Models, config: PPOConfig, prompts: Sequence[list[int]], autocast: torch.autocast
) -> UpdateCost:
    """By dry runs of models that lie whole on a device.

    Raises RuntimeError where a model computes with numbers, which a dry run does not have.
    """
    longest = max(prompts, key=len)

    def pretraining(rows: int) -> Callable[[], None]:
        assert config.pretraining is not None
        shape = (rows, config.pretraining.tokens_per_example)
        ids_BL = torch.zeros(shape, dtype=torch.long, device=models.policy.device)
        return partial(_pretraining, models, ids_BL)

    with autocast:
        return UpdateCost(
            cost_of(partial(update_of, models, config, longest), config.responses_per_prompt),
            NOTHING if config.pretraining is None else cost_of(pretraining),
        )


def update_of(
    models: Models, config: PPOConfig, prompt: list[int], rows: int
) -> Callable[[], None]:
    """The passes of an update over so many episodes, all with this prompt and as long as can be."""
    most = config.sampling.max_new_tokens
    said = Sampled((prompt * most)[:most], ended=False)
    sharing = config.responses_per_prompt
    given = ([prompt] * rows, [said] * rows, models.policy.device)
    layout = lay_out(
        Episodes.build(*given, sharing=sharing), packed=models.packed, right=models.pads_right
    )
    return partial(_update, models, config, layout)


def _update(models: Models, config: PPOConfig, layout: Layout) -> None:
    """The passes of an update; with `kept.first_pass`, both graphs are there at once."""
    token_N = layout.ids_BL.new_zeros(len(layout.place_N))
    with _lost_gradients(models):
        logits_NV, state_ND = policy_logits(models, layout, models.policy)
        loss = objective.chosen_logprobs(logits_NV, token_N, config.sampling.temperature).sum()
        del logits_NV
        if state_ND is not None or config.kept.first_pass:
            torch.autograd.backward(loss + values(models, layout, state_ND).sum())
        else:
            torch.autograd.backward(loss)
            torch.autograd.backward(critic_values(models, layout, models.critic).sum())


def _pretraining(models: Models, ids_BL: Tensor) -> None:
    with _lost_gradients(models):
        nll = pretraining_nll(models.policy, ids_BL, torch.ones_like(ids_BL, dtype=torch.bool))
        torch.autograd.backward(nll)


@contextmanager
def _lost_gradients(models: Models) -> Iterator[None]:
    try:
        yield
    finally:
        for model in (models.policy, models.critic):
            model.zero_grad(set_to_none=True)
