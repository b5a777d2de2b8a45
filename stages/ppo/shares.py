"""Ranks that answer and read a share of the prompts each, and then know all of it.

What is sampled does not depend on the number of ranks: all draw the same random numbers, see
`stages.generation.generate`. Episodes are small beside the models, so every rank gets all of them,
and advantages, minibatches and metrics are what one process would compute.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.functional import pad

from stages.adapters.lora import merged_lora
from stages.distributed.sharding import autocast
from stages.ppo.config import OwnRollouts
from stages.ppo.episodes import Episodes
from stages.ppo.learner import Learner
from stages.ppo.rollout import Rollout, read_episodes, roll_out
from stages.ppo.served import aligned


def answered(
    learner: Learner,
    prompts: Sequence[list[int]],
    generator: torch.Generator,
    *,
    minibatches: Sequence[Tensor] | None = None,
    sharing: int = 1,
    sampled: Callable[[], None] = lambda: None,
    keep: bool = False,
) -> Rollout:
    """The prompts, answered by the policy as it is and read by all models, on every rank.

    `minibatches` are the places of those that this rank will learn from, read here as there, so
    that rounding is the same; None: any equal share. `sharing` neighbours have one prompt;
    `sampled` is called when the responses are there. With `keep`, this rank's passes keep their
    graphs.
    """
    models, config, accelerator = learner.models, learner.config, learner.accelerator
    mine = share_of(accelerator, len(prompts)) if minibatches is None else _places(minibatches)
    logprobs: list[list[float]] = []
    with autocast(accelerator):
        if learner.server is None:
            with learner.policy.gathered(), _merged(learner):
                episodes = roll_out(
                    models, prompts, config.sampling, generator, rows=mine, sharing=sharing
                )
        else:
            learner.server.send()
            said, logprobs = learner.server.answer(prompts, mine, config.sampling, generator)
            asked = [prompts[row] for row in mine]
            episodes = Episodes.build(asked, said, accelerator.device, sharing=sharing)
    sampled()
    models.lower.forget()  # what the last rollout left
    with autocast(accelerator):  # anew: what sampling cast carries no graph
        read = read_episodes(
            models,
            episodes,
            temperature=config.sampling.temperature,
            batch_size=learner.micro.episodes,
            minibatches=minibatches and [_rows(places, mine) for places in minibatches],
            keep=keep,
        )
    read = replace(read, sampler_BT=aligned(logprobs, read.old_BT))
    return shared(accelerator, read, mine)


def _merged(learner: Learner) -> AbstractContextManager[None]:
    """The policy as it samples, in plain layers where that was asked for."""
    rollouts = learner.config.rollouts
    merges = isinstance(rollouts, OwnRollouts) and rollouts.merged
    return merged_lora(learner.models.policy) if merges else nullcontext()


def share_of(accelerator: Accelerator, prompts: int) -> list[int]:
    """This rank's places of so many prompts.

    All ranks get equally many, because sharded models ask all for the same passes: where it does
    not come out even, some prompts are answered twice.
    """
    ranks = accelerator.num_processes
    mine = range(accelerator.process_index, -(-prompts // ranks) * ranks, ranks)
    return [place % prompts for place in mine]


def _places(minibatches: Sequence[Tensor]) -> list[int]:
    """All of them, in order."""
    return sorted(torch.cat(list(minibatches)).tolist())


def _rows(places: Tensor, mine: Sequence[int]) -> Tensor:
    """Where the places are among this rank's own."""
    row = {place: row for row, place in enumerate(mine)}
    return torch.tensor([row[place] for place in places.tolist()], device=places.device)


def shared(accelerator: Accelerator, rollout: Rollout, rows: Sequence[int]) -> Rollout:
    """The rollouts of all ranks as one, by place; `rows` are those of this rank's episodes."""
    if accelerator.num_processes == 1:
        return rollout
    tables = [table.cpu() for table in _tables(rollout)]
    told: list[tuple[Sequence[int], list[Tensor]]] = gather_object([(rows, tables)])
    place: dict[int, int] = {}
    for seat, row in enumerate(chain.from_iterable(rows for rows, _ in told)):
        place.setdefault(row, seat)
    order = torch.tensor([place[row] for row in sorted(place)])
    columns = zip(*(tables for _, tables in told), strict=True)
    device = rollout.score_B.device
    whole = [_right_aligned(column)[order].to(device) for column in columns]
    seat_N = torch.tensor(rows, device=device)
    passes = tuple(replace(one, rows=seat_N[one.rows]) for one in rollout.passes)
    return replace(_rollout(whole, rollout.episodes.sharing), passes=passes)


def _tables(rollout: Rollout) -> list[Tensor]:
    episodes = rollout.episodes
    said = [episodes.ids_BL, episodes.mask_BL, episodes.response_BT, episodes.ended_B]
    read = [rollout.old_BT, rollout.reference_BT, rollout.value_BT, rollout.entropy_BT]
    return [*said, rollout.score_B, *read, rollout.sampler_BT]


def _rollout(tables: Sequence[Tensor], sharing: int) -> Rollout:
    ids_BL, mask_BL, response_BT, ended_B, score_B, *read = tables
    return Rollout(Episodes(ids_BL, mask_BL, response_BT, ended_B, sharing), score_B, *read)


def _right_aligned(parts: Sequence[Tensor]) -> Tensor:
    """The rows of all parts, empty columns put before those that are narrower."""
    if parts[0].dim() == 1:
        return torch.cat(list(parts))
    width = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (width - part.shape[1], 0)) for part in parts])
