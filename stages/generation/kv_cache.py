"""The rows of a batch that still decode: what they have read, and what they may say next.

Dimension key:  B rows that still decode,  Q prompt tokens,  L prompt and response so far,
V vocabulary.
"""

from typing import Protocol, cast

import torch
from torch import LongTensor, Tensor
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from stages.data.padding import pad_right

ROOM = 32  # tokens


def growing_cache(config: PretrainedConfig) -> DynamicCache:
    """transformers' cache for a model, with room in the layers that keep every token."""
    cache = DynamicCache(config=config)
    for place, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[place] = _Roomy()  # type: ignore[no-untyped-call]
    return cache


class _Roomy(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values are the first columns of larger tensors, (rows, heads, columns, size)."""

    _keys: Tensor
    _values: Tensor

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """All keys and values, the new ones last."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._keys, self._values = key_states[:, :, :0], value_states[:, :, :0]
        held = self.get_seq_length()
        columns = held + key_states.shape[2]
        if columns > self._keys.shape[2]:
            self._keys = _longer(self._keys, held, columns + ROOM)
            self._values = _longer(self._values, held, columns + ROOM)
        self._keys[:, :, held:columns] = key_states
        self._values[:, :, held:columns] = value_states
        return self._show(columns)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some of the rows, in this order."""
        self.reorder_cache(indices)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep some of the rows, in this order."""
        held = self.get_seq_length()
        if not held:  # a layer that reads another's keys
            return
        self._keys = self._keys.index_select(0, beam_idx)
        self._values = self._values.index_select(0, beam_idx)
        self._show(held)

    def _show(self, columns: int) -> tuple[Tensor, Tensor]:
        shown = self._keys[:, :, :columns], self._values[:, :, :columns]
        self.keys, self.values = shown
        return shown


def _longer(x_BHLD: Tensor, held: int, columns: int) -> Tensor:
    rows, heads, _, size = x_BHLD.shape
    longer_BHLD = x_BHLD.new_empty(rows, heads, columns, size)
    longer_BHLD[:, :, :held] = x_BHLD[:, :, :held]
    return longer_BHLD


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


class UncachedRows:
    """See `stages.generation.kv_cache.LiveRows`: the same rows, and the same numbers."""

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
