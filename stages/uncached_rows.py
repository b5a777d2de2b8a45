"""Rows that decode without a cache: every token is a forward pass over the whole text so far.

For models that have no cache of this kind, or whose cache does not say what a full pass says
(`stages.cache_check`). Rows are padded on the right, where a model that reads from left to right
cannot see it: recurrences, ALiBi and positions that follow from places in the row are as they are
in a text alone.

Dimension key:  B rows that still decode,  L tokens of the longest,  C columns in which rows end,
V vocabulary.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.data.padding import pad_right
from stages.live_rows import RowSets, rows_after_eviction


class UncachedRows:
    """See `stages.live_rows.LiveRows`: the same rows, and the same numbers."""

    def __init__(
        self, model: PreTrainedModel, asked: list[tuple[list[int], int]], sets: RowSets | None
    ) -> None:
        """Read every prompt; a prompt stands with its user."""
        self.model, self.sets = model, sets
        self.texts = [list(prompt) for prompt, _ in asked]
        self.user_B = torch.tensor([user for _, user in asked], device=model.device)
        self.row_B = torch.arange(len(asked), device=model.device)
        self._seat()
        self.logits_BV = self._forward()

    def rows_for(self, num_alive: int) -> int:
        """Return the number of rows to keep where so many are alive."""
        return rows_after_eviction(num_alive, len(self.row_B))

    def keep(self, kept_B: Tensor) -> None:
        """Forget the rows that are not among these."""
        self.row_B, self.user_B = self.row_B[kept_B], self.user_B[kept_B]
        self.texts = [self.texts[row] for row in kept_B.tolist()]
        self._seat()

    def read(self, token_B: Tensor) -> None:
        """Append one token to every row."""
        for text, token in zip(self.texts, token_B.tolist(), strict=True):
            text.append(token)
        self.logits_BV = self._forward()

    def _seat(self) -> None:
        if self.sets is not None:
            self.sets.seat(self.user_B)

    def _forward(self) -> Tensor:
        ids_BL, mask_BL = (x_BL.to(self.model.device) for x_BL in pad_right(self.texts, 0))
        last_B = mask_BL.sum(-1) - 1
        column_C, place_B = torch.unique(last_B, return_inverse=True)
        logits_BCV: Tensor = self.model(
            input_ids=ids_BL,
            attention_mask=mask_BL.long(),
            use_cache=False,
            logits_to_keep=column_C,
        ).logits
        if logits_BCV.shape[1] != len(column_C):  # a model that gives those of all columns
            place_B = last_B
        return logits_BCV[torch.arange(len(place_B), device=place_B.device), place_B]
