"""Scores of K responses to one prompt, with the prompt computed once.

All prompts of a batch lie in one row without padding, each with its K responses after it, as a stem
and K branches (`reward_models.packed_attention`). A token stands at the position it has without the
others:

    ids        p p p a a a a b b | q q c        scores come from the last a, the last b and c
    positions  0 1 2 3 4 5 6 3 4 | 0 1 2

So a prompt costs Q + K T tokens in place of K (Q + T), with the same scores and gradients. A model
that cannot do this (a sliding window shorter than a text, a recurrence, ALiBi, attention of its
own) gets K separate rows; `choose_layout` compares both on the extreme elements.

Where only the head is trained, the hidden states under it never change and are computed once:

    first forward      ids -> transformer -> state_KD -> head -> score_K     the state is cached
    afterwards                               state_KD -> head -> score_K

So further epochs, folds and a resumed run cost next to nothing.

Dimension key:  B prompts,  A annotators,  K responses,  N tokens of all,  P segments,  L tokens of
a row,  R = B K separate rows,  D hidden size.
"""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from reward_models.atomic_files import written_aside
from reward_models.backbone import transformer
from reward_models.model import RewardModel
from reward_models.packed_attention import (
    STEM,
    PackedSegments,
    attention_mismatch,
    segment_table,
    shorter_window,
)
from reward_models.weights.formats import rounding
from stages.data.padding import pad_right, positions
from stages.reward.batches import RankedPrompt
from stages.training_arguments import num_ranks

Batch = dict[str, Tensor]
Inputs = tuple[Tensor, Tensor | PackedSegments, Tensor, Tensor | None]  # of a RewardModel
Texts = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]  # a prompt and its responses
TOLERANCE = 1e-4  # of a score, which is of order 1 with a new head
STATES = "states"  # a folder with a file a forward pass; a later one's numbers count
MAX_CACHED_BYTES = 2 * 1024**3  # more states than that are computed in every epoch

log = logging.getLogger(__name__)


class Layout(Protocol):
    """The arrangement of prompts and responses in a batch's rows."""

    def collate(self, elements: Sequence[RankedPrompt]) -> Batch:
        """Return tensors, rank_BAK among them: the ranks, 0 for absent annotators and responses."""

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return reward_BK; the number of an absent response has no meaning."""


@dataclass(frozen=True, slots=True)
class SharedPrompt:
    """One row for all prompts."""

    def collate(self, elements: Sequence[RankedPrompt]) -> Batch:
        """Return ids_1N, positions_1N, segment_P3, last_BK (each response's last token), ranks."""
        row = PackedRow()
        last_BK, _ = pad_right(
            [row.add(element.prompt, element.responses) for element in elements], pad_id=0
        )
        return {
            "ids_1N": torch.tensor([row.ids]),
            "positions_1N": torch.tensor([row.positions]),
            "segment_P3": segment_table(row.segments),
            "last_BK": last_BK,
            "rank_BAK": _ranks(elements),
        }

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return reward_BK; the number of an absent response has no meaning."""
        reward_1N: Tensor = model(*self.inputs(batch))
        return reward_1N.view(batch["last_BK"].shape)

    def inputs(self, batch: Batch) -> Inputs:
        """Return the model's arguments: ids_1N, segments, positions_1N and tokens to score."""
        segments = PackedSegments.of(batch["segment_P3"])
        return batch["ids_1N"], segments, batch["positions_1N"], batch["last_BK"].view(1, -1)


@dataclass(frozen=True, slots=True)
class SeparateRows:
    """One row a response, each with its prompt: for models that cannot share it."""

    def collate(self, elements: Sequence[RankedPrompt]) -> Batch:
        """Return ids_RL, mask_RL and ranks; an absent response is a row of one token."""
        most = max(len(element.responses) for element in elements)
        rows = []
        for element in elements:
            rows += [element.prompt + response for response in element.responses]
            rows += [element.prompt[:1]] * (most - len(element.responses))
        ids_RL, mask_RL = pad_right(rows, pad_id=0)
        return {"ids_RL": ids_RL, "mask_RL": mask_RL, "rank_BAK": _ranks(elements)}

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return reward_BK; the number of an absent response has no meaning."""
        reward_R: Tensor = model(*self.inputs(batch))
        return reward_R.view(len(batch["rank_BAK"]), -1)

    def inputs(self, batch: Batch) -> Inputs:
        """Return the model's arguments: ids_RL, mask_RL and positions_RL."""
        return batch["ids_RL"], batch["mask_RL"], positions(batch["mask_RL"]), None


class PackedRow:
    """Prompts with their responses one after another: tokens, positions and segments."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.segments: list[tuple[int, int, int]] = []
        self._stems = 0

    def add(self, prompt: Sequence[int], responses: Sequence[Sequence[int]]) -> list[int]:
        """Return the index of each response's last token; of an empty one, the prompt's."""
        self._append(prompt, 0, STEM)
        last_of_prompt, last = len(self.ids) - 1, []
        for response in responses:
            if response:
                self._append(response, len(prompt), self._stems)
            last.append(len(self.ids) - 1 if response else last_of_prompt)
        self._stems += 1
        return last

    def _append(self, text: Sequence[int], position: int, stem: int) -> None:
        self.segments.append((len(self.ids), len(text), stem))
        self.ids += text
        self.positions += range(position, position + len(text))


def choose_layout(
    model: RewardModel, elements: Sequence[RankedPrompt]
) -> SharedPrompt | SeparateRows:
    """Return the shared prompt if its scores are the same, else separate rows, with a warning."""
    backbone = transformer(model.backbone)
    longest = max(element.path_tokens for element in elements)
    obstacle = shorter_window(backbone, longest) or attention_mismatch(
        [backbone], lambda: _score_mismatch(model, _extremes(elements))
    )
    if obstacle is None:
        return SharedPrompt()
    log.warning(
        "%s cannot share a prompt between its responses: %s; each is computed with its own copy "
        "of the prompt",
        *(type(backbone).__name__, obstacle),
    )
    return SeparateRows()


def cached_layout(model: RewardModel, elements: Sequence[RankedPrompt], folder: Path) -> Layout:
    """Return the chosen layout, with hidden states cached in `folder` if only the head is trained.

    Several processes have different elements, and compute their states in every epoch.
    """
    layout = choose_layout(model, elements)
    size = sum(len(one.responses) for one in elements) * model.head.in_features * 4
    if not model.card.head_only or num_ranks() > 1 or size > MAX_CACHED_BYTES:
        return layout
    texts = list(dict.fromkeys((one.prompt, one.responses) for one in elements))
    dtypes = sorted({str(p.dtype) for p in model.parameters()} - {"torch.float32"})
    parts = (model.card.base_hash, model.card.pooling, texts, *dtypes)
    key = hashlib.sha256(repr(parts).encode())
    return CachedStates(layout, texts, folder / STATES, key.hexdigest())


class CachedStates:
    """A layout with the head's inputs for `texts` cached, in `folder` too.

    Every forward pass is written at once: rounding depends on what else was in the batch, so a
    resumed run must have the very numbers that it had before.
    """

    def __init__(
        self, layout: SharedPrompt | SeparateRows, texts: Iterable[Texts], folder: Path, key: str
    ) -> None:
        """`key` stands for all that the states depend on: files with another are removed."""
        self.layout, self.folder, self.key = layout, folder, key
        self._number = {one: number for number, one in enumerate(texts)}
        self._state_KD: dict[int, Tensor] = {}
        self._load()

    def collate(self, elements: Sequence[RankedPrompt]) -> Batch:
        """Return the layout's batch, and in number_B2 each element's text and response count."""
        numbers = [
            (self._number.get((one.prompt, one.responses), -1), len(one.responses))
            for one in elements
        ]
        return {**self.layout.collate(elements), "number_B2": torch.tensor(numbers)}

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return reward_BK; the number of an absent response has no meaning."""
        assert isinstance(model, RewardModel)  # one process: nothing is wrapped around it
        if all(number in self._state_KD for number, _ in batch["number_B2"].tolist()):
            return model.scores(self._from_cache(batch))
        return model.scores(self._compute(model, batch))

    def _compute(self, model: RewardModel, batch: Batch) -> Tensor:
        with torch.no_grad():
            state = model.states(*self.layout.inputs(batch))
        state_BKD = state.view(len(batch["rank_BAK"]), batch["rank_BAK"].shape[2], -1)
        rows = zip(batch["number_B2"].tolist(), state_BKD, strict=True)
        new = {
            number: state_KD[:responses].float().cpu().clone()
            for (number, responses), state_KD in rows
            if number >= 0
        }
        self._state_KD |= new
        self._save(new)
        return state_BKD

    def _from_cache(self, batch: Batch) -> Tensor:
        rank_BAK = batch["rank_BAK"]
        rows = [self._state_KD[number] for number, _ in batch["number_B2"].tolist()]
        state_BKD = torch.zeros(len(rank_BAK), rank_BAK.shape[2], rows[0].shape[1])
        for row, state_KD in enumerate(rows):
            state_BKD[row, : len(state_KD)] = state_KD
        return state_BKD.to(rank_BAK.device)

    def _load(self) -> None:
        """Load the states of earlier passes, in their order."""
        for path in sorted(self.folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                is_current = (file.metadata() or {}).get("key") == self.key
                names = list(file.keys()) if is_current else []
                self._state_KD |= {int(name): file.get_tensor(name) for name in names}
            if not is_current:
                path.unlink()
        self._num_files = len(list(self.folder.glob("*.safetensors")))

    def _save(self, new: dict[int, Tensor]) -> None:
        states = {str(number): state_KD for number, state_KD in new.items()}
        with written_aside(self.folder / f"{self._num_files:06d}.safetensors") as aside:
            save_file(states, aside, {"key": self.key})
        self._num_files += 1


def _ranks(elements: Sequence[RankedPrompt]) -> Tensor:
    annotators = max(len(element.ranks) for element in elements)
    responses = max(len(element.responses) for element in elements)
    rank_BAK = torch.zeros(len(elements), annotators, responses, dtype=torch.long)
    for row, element in enumerate(elements):
        rank_AK = torch.tensor(element.ranks)
        rank_BAK[row, : rank_AK.shape[0], : rank_AK.shape[1]] = rank_AK
    return rank_BAK


def _extremes(elements: Sequence[RankedPrompt]) -> list[RankedPrompt]:
    """Return the elements of longest path, row and prompt, most responses and shortest text.

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


def _score_mismatch(model: RewardModel, elements: Sequence[RankedPrompt]) -> str | None:
    """Compare both layouts, prompt by prompt, and then with the first before the last in one row.

    Separate rows are compared with themselves too, once their attention is that of shared ones.
    Whatever goes wrong in a separate row before that is no matter of the layout, and is raised.
    """
    batches = [[element] for element in elements] + [[elements[0], elements[-1]]]
    separate = [_scores(model, SeparateRows(), batch) for batch in batches]
    for batch, expected in zip(batches, separate, strict=True):
        tolerance = rounding(model, TOLERANCE) * max(1.0, float(expected.abs().max()))
        for layout in (SharedPrompt(), SeparateRows()):
            difference = float((_scores(model, layout, batch) - expected).abs().max())
            if not difference <= tolerance:
                return f"scores differ by {difference:.1e}"
    return None


def _scores(model: RewardModel, layout: Layout, elements: Sequence[RankedPrompt]) -> Tensor:
    """Return score_N of the responses that there are."""
    device = model.head.weight.device
    batch = {name: value.to(device) for name, value in layout.collate(elements).items()}
    with torch.no_grad():
        reward_BK = layout.scores(model, batch)
    rows = zip(reward_BK, elements, strict=True)
    return torch.cat([reward_K[: len(element.responses)] for reward_K, element in rows])
