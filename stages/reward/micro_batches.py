"""How many prompts with their responses a rank reads at once: as many as its memory holds.

What reading the longest of them costs is found by a dry run (`stages.distributed.memory`), before
the model is divided among ranks, so no micro-batch of the run takes more.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import gather_object
from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from reward_models.model import RewardModel
from stages.distributed.checkpoints import last_checkpoint
from stages.distributed.memory import USED, Cost, cost_of, free_memory, usable
from stages.reward.batches import RankedPrompt
from stages.reward.shared_prompt import Inputs, SeparateRows, SharedPrompt, unweighted

log = logging.getLogger(__name__)


def cut_to_memory(
    arguments: TrainingArguments,
    model: RewardModel,
    layout: SharedPrompt | SeparateRows,
    elements: Sequence[RankedPrompt],
    checkpoints: Path,
) -> None:
    """Cut the batch of `arguments` into micro-batches that every rank has memory for.

    A run that goes on reads at most as many at once as before, so that it ends with the same bits.
    """
    share = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    try:
        cost = reading_cost(model, layout, elements)
    except RuntimeError as error:
        log.warning("every micro-batch is a whole batch, fitting or not: %s", error)
        return
    free, to_come = free_memory(arguments.device), _to_come(arguments, model)
    fits = min(cost.rows(usable(free, to_come)), _before(checkpoints) or share)
    if fits < 1:
        needed = cost.bytes(1) / USED + to_come
        log.warning(
            "memory may not suffice: %.3g GiB is free, and one prompt's responses need %.3g GiB",
            *(free / 2**30, needed / 2**30),
        )
    found = [size for size in range(1, share + 1) if share % size == 0 and size <= fits]
    agreed = min(gather_object([max(found, default=1)]))
    arguments.per_device_train_batch_size = agreed
    arguments.gradient_accumulation_steps = share // agreed


def reading_cost(
    model: RewardModel, layout: SharedPrompt | SeparateRows, elements: Sequence[RankedPrompt]
) -> Cost:
    """Of a pass back and forth over a prompt, the longest with its responses.

    Raises RuntimeError where the model computes with numbers, which a dry run does not have.
    """
    longest = max(elements, key=lambda element: element.row_tokens)

    def work_on(prompts: int) -> Callable[[], None]:
        batch = layout.collate([longest] * prompts, unweighted)
        return partial(pass_over, model, layout.inputs(batch))

    return cost_of(work_on)


def pass_over(model: RewardModel, inputs: Inputs) -> None:
    """Back and forth; the gradients are lost."""
    try:
        torch.autograd.backward(model(*inputs).sum())
    finally:
        model.zero_grad(set_to_none=True)


def _to_come(arguments: TrainingArguments, model: RewardModel) -> int:
    """Bytes that are not on the device yet, passes aside.

    Adam's moments, the buckets in which ranks add up gradients, and on a GPU the model itself.
    """
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    copies = 2 + (arguments.world_size > 1)
    weights = sum(size for size, _ in sizes) if arguments.device.type == "cuda" else 0
    moved = sum(size for size, moves in sizes if moves)
    return int(weights + copies * moved)


def _before(checkpoints: Path) -> int | None:
    """What a run that was cut off read at once."""
    newest = last_checkpoint(checkpoints)
    if newest is None:
        return None
    state = TrainerState.load_from_json(str(newest / TRAINER_STATE_NAME))
    found: int | None = state.train_batch_size
    return found
