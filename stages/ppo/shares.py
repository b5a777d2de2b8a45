"""Ranks that answer and read a share of the prompts each, and then know all of it.

What is sampled does not depend on the number of ranks: all draw the same random numbers, see
`stages.generation`. Episodes are small beside the models, so every rank gets all of them, and
advantages, minibatches and metrics are what one process would compute.
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

from stages.adaptation.lora import merged_lora
from stages.config import OwnRollouts
from stages.ppo.episodes import Episodes
from stages.ppo.learner import Learner
from stages.ppo.rollout import Rollout, read_episodes, roll_out
from stages.ppo.served import aligned


def answered(
    learner: Learner,
    prompts: Sequence[list[int]],
    generator: torch.Generator,
    *,
    together: int = 1,
    sharing: int = 1,
    sampled: Callable[[], None] = lambda: None,
    keep: bool = False,
) -> Rollout:
    """The prompts, answered by the policy as it is and read by all models, on every rank.

    `together` neighbours are one prompt's, `sharing` of them are read in one row; `sampled` is
    called when the responses are there. With `keep`, this rank's passes keep their graphs.
    """
    models, config, accelerator = learner.models, learner.config, learner.accelerator
    mine = share_of(accelerator, len(prompts), together)
    logprobs: list[list[float]] = []
    with learner.autocast():
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
    with learner.autocast():  # anew: what sampling cast carries no graph
        read = read_episodes(
            models,
            episodes,
            temperature=config.sampling.temperature,
            batch_size=learner.micro.episodes,
            keep=keep,
        )
    read = replace(read, sampler_BT=aligned(logprobs, read.old_BT))
    return shared(accelerator, read, mine)


def _merged(learner: Learner) -> AbstractContextManager[None]:
    """The policy as it samples, in plain layers where that was asked for."""
    rollouts = learner.config.rollouts
    merges = isinstance(rollouts, OwnRollouts) and rollouts.merged
    return merged_lora(learner.models.policy) if merges else nullcontext()


def share_of(accelerator: Accelerator, prompts: int, together: int = 1) -> list[int]:
    """This rank's places of so many prompts; `together` neighbours stay on one rank.

    All ranks get equally many, because sharded models ask all for the same passes: where it does
    not come out even, some prompts are answered twice.
    """
    groups, ranks = prompts // together, accelerator.num_processes
    mine = range(accelerator.process_index, -(-groups // ranks) * ranks, ranks)
    return [group % groups * together + k for group in mine for k in range(together)]


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
