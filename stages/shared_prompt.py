"""Scores of K responses to one prompt, with the prompt computed once.

One row is the prompt and, after it, its K responses. A token sees its prompt and the earlier tokens
of its own response, and stands at the position it would have without the other responses:

    ids        p p p | a a a a | b b | - -        branch     0 0 0 | 1 1 1 1 | 2 2 | -1 -1
    positions  0 1 2 | 3 4 5 6 | 3 4 | 0 0        scores are read at the last a and the last b

So a prompt costs Q + K T tokens in place of K (Q + T), with the same scores and gradients. The mask
is an additive float mask: a boolean one is added as 0 and 1 by eager attention and silently wrong.
A model that cannot do this (a sliding window shorter than the row, a recurrence, ALiBi) gets K
separate rows; `choose_layout` finds out by comparing both on the longest row.

Dimension key:  B prompts,  A annotators,  K responses,  L tokens of a row,  N = B K separate rows.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from reward_models.model import RewardModel
from reward_models.trunk import transformer
from stages.data.padding import pad_right, positions
from stages.ranked_prompts import RankedPrompt
from stages.zero_state import whole_shape

logger = logging.getLogger(__name__)

Batch = dict[str, Tensor]
Weigh = Callable[[Tensor], Tensor]  # rank_BAK -> weight_BKK
WINDOWS = ("sliding_window", "window_size", "attention_window", "attention_chunk_size")
TOLERANCE = 1e-4  # of a score, which is of order 1 with a new head


@dataclass(frozen=True, slots=True)
class SharedPrompt:
    """One row a prompt."""

    def collate(self, elements: Sequence[RankedPrompt], weigh: Weigh) -> Batch:
        """ids_BL, branch_BL, positions_BL, read_BK (where each score is read) and weight_BKK."""
        rows = [_row(element) for element in elements]
        most = max(len(element.responses) for element in elements)
        ids_BL, _ = pad_right([row.ids for row in rows], pad_id=0)
        branch_BL, _ = pad_right([row.branches for row in rows], pad_id=-1)
        positions_BL, _ = pad_right([row.positions for row in rows], pad_id=0)
        read_BK, _ = pad_right([row.ends + [0] * (most - len(row.ends)) for row in rows], pad_id=0)
        return {
            "ids_BL": ids_BL,
            "branch_BL": branch_BL,
            "positions_BL": positions_BL,
            "read_BK": read_BK,
            "weight_BKK": weigh(rank_BAK(elements)).float(),
        }

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """reward_BK; what stands for an absent response has no meaning."""
        reward_BK: Tensor = model(*self.inputs(model, batch))
        return reward_BK

    def inputs(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """ids_BL, mask_B1LL, positions_BL and read_BK: the model's arguments."""
        mask_B1LL = tree_mask(batch["branch_BL"], _attention_dtype(model, batch["ids_BL"].device))
        return batch["ids_BL"], mask_B1LL, batch["positions_BL"], batch["read_BK"]


@dataclass(frozen=True, slots=True)
class SeparateRows:
    """One row a response, each with its prompt: for models that cannot share it."""

    def collate(self, elements: Sequence[RankedPrompt], weigh: Weigh) -> Batch:
        """ids_NL, mask_NL and weight_BKK; an absent response is a row of one token."""
        most = max(len(element.responses) for element in elements)
        rows = []
        for element in elements:
            rows += [element.prompt + response for response in element.responses]
            rows += [element.prompt[:1]] * (most - len(element.responses))
        ids_NL, mask_NL = pad_right(rows, pad_id=0)
        return {
            "ids_NL": ids_NL,
            "mask_NL": mask_NL,
            "weight_BKK": weigh(rank_BAK(elements)).float(),
        }

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """reward_BK; what stands for an absent response has no meaning."""
        reward_N: Tensor = model(*self.inputs(model, batch))
        return reward_N.view(len(batch["weight_BKK"]), -1)

    def inputs(self, _: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """ids_NL, mask_NL and positions_NL: the model's arguments."""
        return batch["ids_NL"], batch["mask_NL"], positions(batch["mask_NL"])


class Layout(Protocol):
    """How prompts with their responses become a batch, and a batch scores."""

    def collate(self, elements: Sequence[RankedPrompt], weigh: Weigh) -> Batch:
        """Tensors, weight_BKK among them."""

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """reward_BK; what stands for an absent response has no meaning."""


def choose_layout(
    model: RewardModel, elements: Sequence[RankedPrompt]
) -> SharedPrompt | SeparateRows:
    """The shared prompt where it gives the same scores, else separate rows, with a warning why."""
    longest = max(elements, key=lambda element: element.row_tokens)
    obstacle = _window_obstacle(model, longest.row_tokens) or _mismatch(model, longest)
    if obstacle is None:
        return SharedPrompt()
    kind = type(transformer(model.carrier)).__name__
    logger.warning(
        "%s cannot share a prompt between its responses: %s; each is computed with its "
        "own copy of the prompt",
        kind,
        obstacle,
    )
    return SeparateRows()


def tree_mask(branch_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """mask_B1LL to add to attention logits: 0 where a token is seen, the lowest number where not.

    Padding (branch -1, at the end of a row) sees the prompt, so that no row of the mask is empty.
    """
    length = branch_BL.shape[1]
    earlier_LL = torch.ones(length, length, dtype=torch.bool, device=branch_BL.device).tril()
    same_BLL = branch_BL[:, :, None] == branch_BL[:, None, :]
    prompt_B1L = branch_BL[:, None, :] == 0
    seen_BLL = earlier_LL & (same_BLL | prompt_B1L)
    mask_BLL = torch.zeros(seen_BLL.shape, dtype=dtype, device=branch_BL.device)
    return mask_BLL.masked_fill_(~seen_BLL, torch.finfo(dtype).min)[:, None]


def rank_BAK(elements: Sequence[RankedPrompt]) -> Tensor:  # noqa: N802 - named for its shape
    """Ranks of a batch, 0 for absent annotators and responses."""
    annotators = max(len(element.ranks) for element in elements)
    responses = max(len(element.responses) for element in elements)
    ranks = torch.zeros(len(elements), annotators, responses, dtype=torch.long)
    for place, element in enumerate(elements):
        rows = torch.tensor(element.ranks)
        ranks[place, : rows.shape[0], : rows.shape[1]] = rows
    return ranks


@dataclass(frozen=True, slots=True)
class _Row:
    ids: list[int]
    branches: list[int]
    positions: list[int]
    ends: list[int]


def _row(element: RankedPrompt) -> _Row:
    start = len(element.prompt)
    ids, branches, places = list(element.prompt), [0] * start, list(range(start))
    ends = []
    for number, response in enumerate(element.responses, 1):
        ids += response
        branches += [number] * len(response)
        places += range(start, start + len(response))
        ends.append(len(ids) - 1 if response else start - 1)  # nothing said: read the prompt's end
    return _Row(ids, branches, places, ends)


def _attention_dtype(model: nn.Module, device: torch.device) -> torch.dtype:
    """The dtype of queries, which sdpa wants a float mask to have."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return next(
        parameter.dtype for parameter in model.parameters() if len(whole_shape(parameter)) > 1
    )


def _window_obstacle(model: RewardModel, row_tokens: int) -> str | None:
    settings = transformer(model.carrier).config.to_dict()
    for name in WINDOWS:
        window = settings.get(name)
        if isinstance(window, int) and window < row_tokens:
            return f"its {name} of {window} is shorter than the longest row of {row_tokens} tokens"
    return None


def _mismatch(model: RewardModel, element: RankedPrompt) -> str | None:
    """Compare both layouts on one prompt, without gradients."""
    device = model.head.weight.device
    scores = []
    with torch.no_grad():
        for layout in (SeparateRows(), SharedPrompt()):
            batch = {
                name: value.to(device)
                for name, value in layout.collate([element], _unweighted).items()
            }
            try:
                scores.append(layout.scores(model, batch))
            except (ValueError, RuntimeError, TypeError, IndexError, AttributeError) as error:
                if isinstance(layout, SeparateRows):
                    raise
                return f"it refused ({str(error).splitlines()[0][:80]})"
    difference = (scores[0] - scores[1]).abs().max().item()
    if difference <= TOLERANCE * max(1.0, scores[0].abs().max().item()):
        return None
    return f"scores differ by {difference:.1e}"


def _unweighted(rank_BAK: Tensor) -> Tensor:
    return torch.zeros(rank_BAK.shape[0], rank_BAK.shape[2], rank_BAK.shape[2])
