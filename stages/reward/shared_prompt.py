"""Scores of K responses to one prompt, with the prompt computed once.

All prompts of a batch lie in one row without padding, each with its K responses after it, as a stem
and K branches (`reward_models.packed_attention`). A token stands at the position it has without the
others:

    ids        p p p a a a a b b | q q c        scores are read at the last a, the last b and c
    positions  0 1 2 3 4 5 6 3 4 | 0 1 2

So a prompt costs Q + K T tokens in place of K (Q + T), with the same scores and gradients. A model
that cannot do this (a sliding window shorter than a text, a recurrence, ALiBi, attention of its
own) gets K separate rows; `choose_layout` finds out by comparing both on the extreme elements.

Dimension key:  B prompts,  A annotators,  K responses,  N tokens of all,  P segments,  L tokens of
a row,  R = B K separate rows.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from reward_models.backbone import transformer
from reward_models.model import RewardModel
from reward_models.packed_attention import (
    STEM,
    PackedSegments,
    attention_mismatch,
    segment_table,
    shorter_window,
)
from stages.data.padding import pad_right, positions
from stages.reward.batches import RankedPrompt
from stages.training_arguments import num_ranks

logger = logging.getLogger(__name__)

Batch = dict[str, Tensor]
Inputs = tuple[Tensor, Tensor | PackedSegments, Tensor, Tensor | None]  # of a RewardModel
Weigh = Callable[[Tensor], Tensor]  # rank_BAK -> weight_BKK
TOLERANCE = 1e-4  # of a score, which is of order 1 with a new head


@dataclass(frozen=True, slots=True)
class SharedPrompt:
    """One row for all prompts."""

    def collate(self, elements: Sequence[RankedPrompt], weigh: Weigh) -> Batch:
        """ids_1N, positions_1N, segment_P3, read_BK (where each score is read) and weight_BKK."""
        row = PackedRow()
        ends = [row.add(element.prompt, element.responses) for element in elements]
        read_BK, _ = pad_right(ends, pad_id=0)
        return {
            "ids_1N": torch.tensor([row.ids]),
            "positions_1N": torch.tensor([row.positions]),
            "segment_P3": segment_table(row.segments),
            "read_BK": read_BK,
            "weight_BKK": weigh(rank_BAK(elements)).float(),
        }

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """reward_BK; what stands for an absent response has no meaning."""
        reward_1N: Tensor = model(*self.inputs(batch))
        return reward_1N.view(batch["read_BK"].shape)

    def inputs(self, batch: Batch) -> Inputs:
        """ids_1N, the segments, positions_1N and where to read: the model's arguments."""
        segments = PackedSegments.of(batch["segment_P3"])
        return batch["ids_1N"], segments, batch["positions_1N"], batch["read_BK"].view(1, -1)


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
    trunk = transformer(model.backbone)
    longest_path = max(element.path_tokens for element in elements)
    obstacle = shorter_window(trunk, longest_path) or attention_mismatch(
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


class PackedRow:
    """Prompts with their responses one after another: tokens, positions, and where segments lie."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.segments: list[tuple[int, int, int]] = []
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
        self.segments.append((len(self.ids), len(text), stem))
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


STATES = "states"  # a folder with a file a reading; a later one's numbers count
MOST_BYTES = 2 * 1024**3  # of states that are kept; more of them are computed in every epoch

Texts = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]  # a prompt and its responses


def cached_layout(model: RewardModel, elements: Sequence[RankedPrompt], folder: Path) -> Layout:
    """How the elements are read; once, and kept in `folder`, where only the head moves.

    Several processes see different elements, and read them in every epoch.
    """
    layout = choose_layout(model, elements)
    size = sum(len(one.responses) for one in elements) * model.head.in_features * 4
    if not model.card.head_only or num_ranks() > 1 or size > MOST_BYTES:
        return layout
    texts = list(dict.fromkeys((one.prompt, one.responses) for one in elements))
    by = hashlib.sha256(repr((model.card.base_hash, model.card.pooling, texts)).encode())
    return CachedStates(layout, texts, folder / STATES, by.hexdigest())


class CachedStates:
    """A layout that remembers what the head reads of `texts`, also in `folder`."""

    def __init__(
        self, under: SharedPrompt | SeparateRows, texts: Iterable[Texts], folder: Path, by: str
    ) -> None:
        """`by` stands for all that the states depend on: files with another are removed."""
        self.under, self.folder, self.by = under, folder, by
        self._number = {one: number for number, one in enumerate(texts)}
        self._state_KD: dict[int, Tensor] = {}
        self._readings = 0  # that are on the disk
        self._take_found()

    def collate(self, elements: Sequence[RankedPrompt], weigh: Weigh) -> Batch:
        """The layout's batch, and in number_B2 which texts they are and how many responses."""
        numbers = [
            (self._number.get((one.prompt, one.responses), -1), len(one.responses))
            for one in elements
        ]
        return {**self.under.collate(elements, weigh), "number_B2": torch.tensor(numbers)}

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """reward_BK; what stands for an absent response has no meaning."""
        assert isinstance(model, RewardModel)  # one process: nothing is wrapped around it
        known = all(number in self._state_KD for number, _ in batch["number_B2"].tolist())
        return model.scores(self._kept(batch) if known else self._read(model, batch))

    def _read(self, model: RewardModel, batch: Batch) -> Tensor:
        with torch.no_grad():
            state = model.states(*self.under.inputs(batch))
        state_BKD = state.view(*batch["weight_BKK"].shape[:2], -1)
        rows = zip(batch["number_B2"].tolist(), state_BKD, strict=True)
        new = {
            number: state_KD[:responses].float().cpu().clone()
            for (number, responses), state_KD in rows
            if number >= 0
        }
        self._state_KD |= new
        self._save(new)
        return state_BKD

    def _kept(self, batch: Batch) -> Tensor:
        weight_BKK = batch["weight_BKK"]
        rows = [self._state_KD[number] for number, _ in batch["number_B2"].tolist()]
        state_BKD = torch.zeros(*weight_BKK.shape[:2], rows[0].shape[1])
        for place, state_KD in enumerate(rows):
            state_BKD[place, : len(state_KD)] = state_KD
        return state_BKD.to(weight_BKK.device)

    def _take_found(self) -> None:
        """Take what earlier readings left, in their order."""
        for path in sorted(self.folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                mine = (file.metadata() or {}).get("by") == self.by
                names = list(file.keys()) if mine else []
                self._state_KD |= {int(name): file.get_tensor(name) for name in names}
            if not mine:
                path.unlink()
        self._readings = len(list(self.folder.glob("*.safetensors")))

    def _save(self, new: dict[int, Tensor]) -> None:
        """Write aside and rename, so that a kill leaves whole files alone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        final = self.folder / f"{self._readings:06d}.safetensors"
        aside = final.with_suffix(".part")
        save_file(
            {str(number): state_KD for number, state_KD in new.items()}, aside, {"by": self.by}
        )
        aside.replace(final)
        self._readings += 1
