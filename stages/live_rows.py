"""The rows of a batch that still decode: what they have read, and what they may say next.

Dimension key:  B rows that still decode,  Q prompt tokens,  L prompt and response so far,
V vocabulary.
"""

from typing import Protocol, cast

import torch
from torch import LongTensor, Tensor
from transformers import PreTrainedModel

from stages.growing_cache import growing_cache

PROMPT_PART = 512  # tokens of a prompt in one pass, so that long ones take little memory
_EVICT_BELOW = 0.85  # share of live rows under which the batch is compacted


class RowSets(Protocol):
    """Sets of several users on one model; each row of a batch is answered under its user's."""

    def seat(self, user_B: Tensor) -> None:
        """From now on row b belongs to user `user_B[b]`, a place in the sets' list."""


class Rows(Protocol):
    """Rows of a batch that still decode, whatever they decode with."""

    row_B: Tensor
    logits_BV: Tensor

    def rows_for(self, num_alive: int) -> int:
        """How many rows to go on with where so many are alive."""

    def keep(self, kept_B: Tensor) -> None:
        """Forget the rows that are not among these."""

    def read(self, token_B: Tensor) -> None:
        """Append one token to every row."""


class LiveRows:
    """The rows of a batch that still decode: their cache, mask, positions and next logits."""

    def __init__(
        self,
        model: PreTrainedModel,
        asked: list[tuple[list[int], int]],
        sets: RowSets | None,
        part_tokens: int | None = None,
        fill: int = 0,
    ) -> None:
        """Read every distinct prompt once, left-padded, and copy its cache to its rows.

        A prompt stands with its user; the list is sorted, so that equal pairs are neighbours. One
        pass reads `part_tokens` of the prompts; None: PROMPT_PART. What is padded is filled with
        the token `fill`.
        """
        starts = [i for i, pair in enumerate(asked) if i == 0 or pair != asked[i - 1]]
        distinct, device = [asked[i][0] for i in starts], model.device
        width = max(map(len, distinct))
        padded = [[fill] * (width - len(prompt)) + prompt for prompt in distinct]
        self.model, self.cache = model, growing_cache(model.config)
        self.row_B = torch.arange(len(asked), device=device)
        self.sets, self.user_B = sets, torch.tensor([asked[i][1] for i in starts], device=device)
        self._seat()
        self.position_B = torch.tensor([len(prompt) for prompt in distinct], device=device)
        pads_B = width - self.position_B
        self.mask_BL = (torch.arange(width, device=device) >= pads_B[:, None]).long()
        position_BQ = (self.mask_BL.cumsum(-1) - 1).clamp(min=0)
        ids_BQ = torch.tensor(padded, device=device)
        at_once = part_tokens or PROMPT_PART
        for begin in range(0, width, at_once):
            part = slice(begin, begin + at_once)
            mask_BL = self.mask_BL[:, : part.stop]
            self.logits_BV = self._forward(ids_BQ[:, part], position_BQ[:, part], mask_BL)
        if len(distinct) < len(asked):
            source_B = torch.searchsorted(
                torch.tensor(starts, device=device), self.row_B, right=True
            )
            self._select(source_B - 1)
            self.logits_BV = self.logits_BV[source_B - 1]

    def rows_for(self, num_alive: int) -> int:
        """How many rows to go on with where so many are alive."""
        return rows_after_eviction(num_alive, len(self.row_B))

    def keep(self, kept_B: Tensor) -> None:
        """Forget the rows that are not among these."""
        self.row_B = self.row_B[kept_B]
        self._select(kept_B)

    def read(self, token_B: Tensor) -> None:
        """Append one token to every row."""
        self.mask_BL = torch.nn.functional.pad(self.mask_BL, (0, 1), value=1)
        self.logits_BV = self._forward(token_B[:, None], self.position_B[:, None], self.mask_BL)
        self.position_B = self.position_B + 1

    def _select(self, index_B: Tensor) -> None:
        self.cache.reorder_cache(cast(LongTensor, index_B))  # recurrent states too
        self.mask_BL, self.position_B = self.mask_BL[index_B], self.position_B[index_B]
        self.user_B = self.user_B[index_B]
        self._seat()

    def _seat(self) -> None:
        if self.sets is not None:
            self.sets.seat(self.user_B)

    def _forward(self, ids_BQ: Tensor, position_BQ: Tensor, mask_BL: Tensor) -> Tensor:
        output = self.model(
            input_ids=ids_BQ,
            attention_mask=mask_BL,
            position_ids=position_BQ,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV


def rows_after_eviction(num_alive: int, rows: int) -> int:
    """Return the number of `rows` to keep: all of them until enough are over to be worth a copy."""
    return num_alive if num_alive < _EVICT_BELOW * rows else rows
