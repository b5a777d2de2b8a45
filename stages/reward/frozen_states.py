"""What the head of a probe reads is computed once: its transformer never changes.

    first reading      ids -> transformer -> state_KD -> head -> score_K        the state is kept
    afterwards                               state_KD -> head -> score_K

So further epochs, folds and a resumed run cost next to nothing. Scores and gradients are those of
the layout underneath. Every reading is written at once: rounding depends on what else was in the
batch, so a resumed run must have the very numbers that it had before.

Dimension key:  B prompts,  K responses to one prompt,  D hidden size.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from reward_models.model import RewardModel
from stages.reward.batches import RankedPrompt
from stages.reward.shared_prompt import (
    Batch,
    Layout,
    SeparateRows,
    SharedPrompt,
    Weigh,
    choose_layout,
)
from stages.training_arguments import num_ranks

STATES = "states"  # a folder with a file a reading; a later one's numbers count
MOST_BYTES = 2 * 1024**3  # of states that are kept; more of them are computed in every epoch

Texts = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]  # a prompt and its responses


def layout_for(model: RewardModel, elements: Sequence[RankedPrompt], folder: Path) -> Layout:
    """How the elements are read; once, and kept in `folder`, where only the head moves.

    Several processes see different elements, and read them in every epoch.
    """
    layout = choose_layout(model, elements)
    size = sum(len(one.responses) for one in elements) * model.head.in_features * 4
    if not model.card.head_only or num_ranks() > 1 or size > MOST_BYTES:
        return layout
    texts = list(dict.fromkeys((one.prompt, one.responses) for one in elements))
    by = hashlib.sha256(repr((model.card.base_hash, model.card.pooling, texts)).encode())
    return FrozenStates(layout, texts, folder / STATES, by.hexdigest())


class FrozenStates:
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
