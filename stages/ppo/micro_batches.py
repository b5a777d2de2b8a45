"""The number of episodes in a forward pass: as many as memory holds, or as the config sets.

The memory that a forward and backward pass takes is found by a dry run (see
`stages.distributed.memory`) at the longest prompt with responses of the full length, so no
micro-batch of the run takes more; how much is free is measured once everything else is loaded. So
nothing has to run out of memory.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor

from stages.adapters.cached_layers import CachedLayers
from stages.distributed.memory import USED, Cost, cost_of, free_memory, usable
from stages.distributed.network import Network
from stages.distributed.optimizers import state_bytes
from stages.generation.generate import Sampled
from stages.ppo.config import PPOConfig
from stages.ppo.forward import (
    critic_values,
    lay_out_for,
    policy_logprobs,
    pretraining_nll,
    values,
)
from stages.ppo.models import Models
from stages.ppo.rollout import Episodes, Layout

NOTHING = Cost(0, 1)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The most episodes, and examples of pretraining text, in one forward pass of a rank."""

    episodes: int
    examples: int

    @classmethod
    def configured(cls, config: PPOConfig, ranks: int) -> "MicroBatch":
        """A rank's part of a minibatch, or less where the config sets it."""
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
    """Memory of an update's passes over episodes and over pretraining examples."""

    episodes: Cost
    examples: Cost


def update_cost(
    models: Models, config: PPOConfig, prompts: Sequence[list[int]]
) -> UpdateCost | None:
    """The memory of an update, by dry runs of models that are whole on a device.

    None where it is not needed, or where a model computes with numbers, which a dry run lacks.
    """
    if config.micro_batch_size != "auto":
        return None
    longest, mix = max(prompts, key=len), config.pretraining

    def pretraining(rows: int) -> Callable[[], None]:
        assert mix is not None
        shape = (rows, mix.tokens_per_example)
        ids_BL = torch.zeros(shape, dtype=torch.long, device=models.policy.device)
        return partial(_pretraining_passes, models, ids_BL)

    try:
        return UpdateCost(
            cost_of(partial(update_of, models, config, longest), config.responses_per_prompt),
            NOTHING if mix is None else cost_of(pretraining),
        )
    except RuntimeError as error:
        log.warning("every micro-batch is a whole minibatch, fitting or not: %s", error)
        return None


def fitting(
    cost: UpdateCost, config: PPOConfig, accelerator: Accelerator, reserved: int
) -> MicroBatch:
    """The most that every rank has memory for, but at least one prompt's responses.

    `reserved` are bytes that an update needs beside its passes and that are still free.
    """
    group, free = config.responses_per_prompt, free_memory(accelerator.device)
    room = usable(free, reserved)
    rows = [cost.episodes.rows(room) // group * group, cost.examples.rows(room)]
    if rows[0] < group or rows[1] < 1:
        needed = max(cost.episodes.bytes(group), cost.examples.bytes(1)) / USED + reserved
        log.warning(
            "memory may not suffice: %.3g GiB is free, and the smallest update needs %.3g GiB",
            free / 2**30,
            needed / 2**30,
        )
    rows_R2 = accelerator.gather(torch.tensor([rows], device=accelerator.device))
    episodes, examples = rows_R2.amin(0).tolist()
    return MicroBatch(max(group, episodes), max(1, examples))


def reserved_bytes(
    networks: Sequence[Network], lower: CachedLayers, tokens: int, config: PPOConfig
) -> int:
    """Memory that an update takes and that is free before the first one, its passes aside.

    That is Adam's moments of this rank's shards, and the cached layers' states of so many tokens.
    """
    sizes = [x.numel() for network in networks for x in network.shards().values()]
    kind = (config.optimizer, config.precision.masters)
    return sum(state_bytes(size, *kind) for size in sizes) + tokens * lower.bytes_per_token


def update_of(
    models: Models, config: PPOConfig, prompt: list[int], rows: int
) -> Callable[[], None]:
    """The passes of an update over so many episodes with this prompt, all of the full length."""
    tokens = config.sampling.max_new_tokens
    response = Sampled((prompt * tokens)[:tokens], ended=False)
    episodes = Episodes.build(
        [prompt] * rows,
        [response] * rows,
        models.policy.device,
        sharing=config.responses_per_prompt,
    )
    return partial(_update_passes, models, config, lay_out_for(models, episodes))


def _update_passes(models: Models, config: PPOConfig, layout: Layout) -> None:
    """The passes of an update; with `cached.first_forward`, both graphs are there at once."""
    token_N = layout.ids_BL.new_zeros(len(layout.predict_N))
    with _discarded_gradients(models):
        logprob_N, _, state_ND = policy_logprobs(
            models, layout, models.policy, token_N, config.sampling.temperature
        )
        loss = logprob_N.sum()
        del logprob_N, _
        if state_ND is not None or config.cached.first_forward:
            torch.autograd.backward(loss + values(models, layout, state_ND).sum())
        else:
            torch.autograd.backward(loss)
            torch.autograd.backward(critic_values(models, layout, models.critic).sum())


def _pretraining_passes(models: Models, ids_BL: Tensor) -> None:
    with _discarded_gradients(models):
        mask_BL = torch.ones_like(ids_BL, dtype=torch.bool)
        torch.autograd.backward(pretraining_nll(models, models.policy, ids_BL, mask_BL))


@contextmanager
def _discarded_gradients(models: Models) -> Iterator[None]:
    try:
        yield
    finally:
        for model in (models.policy, models.critic):
            model.zero_grad(set_to_none=True)
