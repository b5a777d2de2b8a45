"""Scores of K responses to one prompt, with the prompt computed once.

All prompts of a batch lie in one row without padding, each with its K responses after it, as a stem
and K branches (`reward_models.packed_attention`). A token stands at the position it has without the
others:

    ids        p p p a a a a b b | q q c        scores are read at the last a, the last b and c
    positions  0 1 2 3 4 5 6 3 4 | 0 1 2

So a prompt costs Q + K T tokens in place of K (Q + T), with the same scores and gradients. A model
that cannot do this (a sliding window shorter than a text, a recurrence, ALiBi, attention of its
own) gets K separate rows; `choose_layout` finds out by comparing both on the extreme elements.

Dimension key:  B prompts,  A annotators,  K responses,  N tokens of all,  P pieces,  L tokens of a
row,  R = B K separate rows.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from reward_models.backbone import transformer
from reward_models.model import RewardModel
from reward_models.packed_attention import (
    STEM,
    Pieces,
    obstacle_to_attention,
    piece_table,
    shorter_window,
)
from stages.data.padding import pad_right, positions
from stages.reward.batches import RankedPrompt

logger = logging.getLogger(__name__)

Batch = dict[str, Tensor]
Inputs = tuple[Tensor, Tensor | Pieces, Tensor, Tensor | None]  # of a RewardModel
Weigh = Callable[[Tensor], Tensor]  # rank_BAK -> weight_BKK
TOLERANCE = 1e-4  # of a score, which is of order 1 with a new head


@dataclass(frozen=True, slots=True)
class SharedPrompt:
    """One row for all prompts."""

    def collate(self, elements: Sequence[RankedPrompt], weigh: Weigh) -> Batch:
        """ids_1N, positions_1N, piece_P3, read_BK (where each score is read) and weight_BKK."""
        row = Row()
        ends = [row.add(element.prompt, element.responses) for element in elements]
        read_BK, _ = pad_right(ends, pad_id=0)
        return {
            "ids_1N": torch.tensor([row.ids]),
            "positions_1N": torch.tensor([row.positions]),
            "piece_P3": piece_table(row.pieces),
            "read_BK": read_BK,
            "weight_BKK": weigh(rank_BAK(elements)).float(),
        }

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """reward_BK; what stands for an absent response has no meaning."""
        reward_1N: Tensor = model(*self.inputs(batch))
        return reward_1N.view(batch["read_BK"].shape)

    def inputs(self, batch: Batch) -> Inputs:
        """ids_1N, the pieces, positions_1N and where to read: the model's arguments."""
        pieces = Pieces.of(batch["piece_P3"])
        return batch["ids_1N"], pieces, batch["positions_1N"], batch["read_BK"].view(1, -1)


@dataclass(frozen=True, slots=True)
class SeparateRows:
    """One row a response, each with its prompt: for models that cannot share it."""

    def collate(self, elements: Sequence[RankedPrompt], weigh: Weigh) -> Batch:
        """ids_RL, mask_RL and weight_BKK; an absent response is a row of one token."""
        most = max(len(element.responses) for element in elements)
        rows = []
        for element in elements:
            rows += [element.prompt + response for response in element.responses]
            rows += [element.prompt[:1]] * (most - len(element.responses))
        ids_RL, mask_RL = pad_right(rows, pad_id=0)
        return {
            "ids_RL": ids_RL,
            "mask_RL": mask_RL,
            "weight_BKK": weigh(rank_BAK(elements)).float(),
        }

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """reward_BK; what stands for an absent response has no meaning."""
        reward_R: Tensor = model(*self.inputs(batch))
        return reward_R.view(len(batch["weight_BKK"]), -1)

    def inputs(self, batch: Batch) -> Inputs:
        """ids_RL, mask_RL and positions_RL: the model's arguments."""
        return batch["ids_RL"], batch["mask_RL"], positions(batch["mask_RL"]), None


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
    trunk = transformer(model.carrier)
    longest_path = max(element.path_tokens for element in elements)
    obstacle = shorter_window(trunk, longest_path) or obstacle_to_attention(
        [trunk], lambda: _mismatch(model, extremes(elements))
    )
    if obstacle is None:
        return SharedPrompt()
    kind = type(trunk).__name__
    logger.warning(
        "%s cannot share a prompt between its responses: %s; each is computed with its "
        "own copy of the prompt",
        kind,
        obstacle,
    )
    return SeparateRows()


def rank_BAK(elements: Sequence[RankedPrompt]) -> Tensor:  # noqa: N802 - named for its shape
    """Ranks of a batch, 0 for absent annotators and responses."""
    annotators = max(len(element.ranks) for element in elements)
    responses = max(len(element.responses) for element in elements)
    ranks = torch.zeros(len(elements), annotators, responses, dtype=torch.long)
    for place, element in enumerate(elements):
        rows = torch.tensor(element.ranks)
        ranks[place, : rows.shape[0], : rows.shape[1]] = rows
    return ranks


class Row:
    """Prompts with their responses one after another: tokens, positions, and where pieces lie."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.pieces: list[tuple[int, int, int]] = []
        self._stems = 0

    def add(self, prompt: Sequence[int], responses: Sequence[Sequence[int]]) -> list[int]:
        """The place of each response's last token; of one that says nothing, the prompt's."""
        self._put(prompt, 0, STEM)
        last, ends = len(self.ids) - 1, []
        for response in responses:
            if response:
                self._put(response, len(prompt), self._stems)
            ends.append(len(self.ids) - 1 if response else last)
        self._stems += 1
        return ends

    def _put(self, text: Sequence[int], position: int, stem: int) -> None:
        self.pieces.append((len(self.ids), len(text), stem))
        self.ids += text
        self.positions += range(position, position + len(text))


def extremes(elements: Sequence[RankedPrompt]) -> list[RankedPrompt]:
    """The elements of the longest path, row and prompt, of most responses and the shortest text.

    The last is there because what a text leaves behind may fade within a few tokens.
    """
    chosen = [
        max(elements, key=lambda element: element.path_tokens),
        max(elements, key=lambda element: element.row_tokens),
        max(elements, key=lambda element: len(element.prompt)),
        max(elements, key=lambda element: len(element.responses)),
        min(elements, key=lambda element: len(element.prompt) + min(map(len, element.responses))),
    ]
    return list({id(element): element for element in chosen}.values())


def _mismatch(model: RewardModel, elements: Sequence[RankedPrompt]) -> str | None:
    """Compare both layouts, prompt by prompt, and then with the first before the last in one row.

    Separate rows are compared with themselves too, once their attention is that of shared ones.
    Whatever goes wrong in a separate row before that is no matter of the layout, and is raised.
    """
    batches = [[element] for element in elements] + [[elements[0], elements[-1]]]
    separate = [_scores(model, SeparateRows(), batch) for batch in batches]
    for batch, expected in zip(batches, separate, strict=True):
        tolerance = TOLERANCE * max(1.0, float(expected.abs().max()))
        for layout in (SharedPrompt(), SeparateRows()):
            difference = float((_scores(model, layout, batch) - expected).abs().max())
            if not difference <= tolerance:
                return f"scores differ by {difference:.1e}"
    return None


def _scores(model: RewardModel, layout: Layout, elements: Sequence[RankedPrompt]) -> Tensor:
    """score_N of the responses that there are."""
    device = model.head.weight.device
    batch = layout.collate(elements, unweighted)
    with torch.no_grad():
        reward_BK = layout.scores(model, {name: value.to(device) for name, value in batch.items()})
    rows = zip(reward_BK, elements, strict=True)
    return torch.cat([reward_K[: len(element.responses)] for reward_K, element in rows])


def unweighted(rank_BAK: Tensor) -> Tensor:
    """No pair counts, for passes that are about scores alone."""
    return torch.zeros(rank_BAK.shape[0], rank_BAK.shape[2], rank_BAK.shape[2])
