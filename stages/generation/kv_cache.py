"""Rows of a batch that decode, and the choice between decoding with a KV cache and without.

An architecture that does not know `past_key_values` accepts it silently and samples every token
without its history. So before a model's first token, prompts of several lengths are processed in
parts, tokens are appended and a row is dropped; the logits are compared with those of plain forward
passes. What agrees first is used:

    cache, prompts in parts  |  cache, prompts whole (recurrences)  |  no cache (`UncachedRows`)

Dimension key:  B rows that still decode,  Q prompt tokens,  L prompt and response so far,
V vocabulary,  S steps.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast
from weakref import WeakKeyDictionary

import torch
from torch import LongTensor, Tensor
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from reward_models.compat import attention_name
from reward_models.model_files import first_line
from reward_models.packed_attention import FORWARD_ERRORS, attention_windows, example_ids
from stages.data.padding import pad_right
from stages.forward_check import difference, tolerance_of

log = logging.getLogger(__name__)

SPARE_COLUMNS = 32  # of a cache that grows
PROMPT_PART = 512  # tokens of a prompt in one pass, so that long ones take little memory
_EVICT_BELOW = 0.85  # share of live rows under which the batch is compacted

Request = tuple[list[int], int]  # a prompt's token ids and the number of its adapter


class RowAdapters(Protocol):
    """Adapters of several users on one model, one to each row of a batch."""

    def assign(self, user_B: Tensor) -> None:
        """Give row b the adapter number `user_B[b]` from now on."""


class Rows(Protocol):
    """Rows of a batch that still decode, with a cache or without."""

    row_B: Tensor  # their numbers in the batch
    logits_BV: Tensor  # of the next token

    def rows_for(self, num_alive: int) -> int:
        """Return the number of rows to keep: all, until enough are over to be worth a copy."""
        return num_alive if num_alive < _EVICT_BELOW * len(self.row_B) else len(self.row_B)

    def keep(self, index_B: Tensor) -> None:
        """Drop the rows that are not among these."""

    def append(self, token_B: Tensor) -> None:
        """Append one token to every row and compute the logits of the next."""


class CachedRows(Rows):
    """Rows with a KV cache, mask and positions."""

    def __init__(
        self,
        model: PreTrainedModel,
        requests: Sequence[Request],
        adapters: RowAdapters | None,
        part_tokens: int | None = None,
        pad_id: int = 0,
    ) -> None:
        """Process every distinct prompt once, left-padded, and copy its cache to its rows.

        Requests are sorted, so that equal ones are neighbours. One forward pass takes `part_tokens`
        of the prompts; None: PROMPT_PART.
        """
        starts = [i for i, one in enumerate(requests) if i == 0 or one != requests[i - 1]]
        distinct, device = [requests[i][0] for i in starts], model.device
        width = max(map(len, distinct))
        padded = [[pad_id] * (width - len(prompt)) + prompt for prompt in distinct]
        self.model, self.cache, self.adapters = model, growing_cache(model.config), adapters
        self.row_B = torch.arange(len(requests), device=device)
        self.user_B = torch.tensor([requests[i][1] for i in starts], device=device)
        self._assign()
        self.position_B = torch.tensor([len(prompt) for prompt in distinct], device=device)
        pads_B = width - self.position_B
        self.mask_BL = (torch.arange(width, device=device) >= pads_B[:, None]).long()
        position_BQ = (self.mask_BL.cumsum(-1) - 1).clamp(min=0)
        ids_BQ = torch.tensor(padded, device=device)
        step = part_tokens or PROMPT_PART
        for begin in range(0, width, step):
            part = slice(begin, begin + step)
            mask_BL = self.mask_BL[:, : part.stop]
            self.logits_BV = self._forward(ids_BQ[:, part], position_BQ[:, part], mask_BL)
        if len(distinct) < len(requests):
            first_B = torch.tensor(starts, device=device)
            source_B = torch.searchsorted(first_B, self.row_B, right=True) - 1
            self._select(source_B)
            self.logits_BV = self.logits_BV[source_B]

    def keep(self, index_B: Tensor) -> None:
        """Drop the rows that are not among these."""
        self.row_B = self.row_B[index_B]
        self._select(index_B)

    def append(self, token_B: Tensor) -> None:
        """Append one token to every row and compute the logits of the next."""
        self.mask_BL = torch.nn.functional.pad(self.mask_BL, (0, 1), value=1)
        self.logits_BV = self._forward(token_B[:, None], self.position_B[:, None], self.mask_BL)
        self.position_B = self.position_B + 1

    def _select(self, index_B: Tensor) -> None:
        self.cache.reorder_cache(cast(LongTensor, index_B))  # recurrent states too
        self.mask_BL, self.position_B = self.mask_BL[index_B], self.position_B[index_B]
        self.user_B = self.user_B[index_B]
        self._assign()

    def _assign(self) -> None:
        if self.adapters is not None:
            self.adapters.assign(self.user_B)

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


class UncachedRows(Rows):
    """The same rows and numbers without a cache: every token takes a pass over the whole text."""

    def __init__(
        self, model: PreTrainedModel, requests: Sequence[Request], adapters: RowAdapters | None
    ) -> None:
        """Process every prompt."""
        self.model, self.adapters = model, adapters
        self.texts = [list(prompt) for prompt, _ in requests]
        self.user_B = torch.tensor([user for _, user in requests], device=model.device)
        self.row_B = torch.arange(len(requests), device=model.device)
        self.logits_BV = self._forward()

    def keep(self, index_B: Tensor) -> None:
        """Drop the rows that are not among these."""
        self.row_B, self.user_B = self.row_B[index_B], self.user_B[index_B]
        self.texts = [self.texts[row] for row in index_B.tolist()]

    def append(self, token_B: Tensor) -> None:
        """Append one token to every row and compute the logits of the next."""
        for text, token in zip(self.texts, token_B.tolist(), strict=True):
            text.append(token)
        self.logits_BV = self._forward()

    def _forward(self) -> Tensor:
        if self.adapters is not None:
            self.adapters.assign(self.user_B)
        ids_BL, mask_BL = (x_BL.to(self.model.device) for x_BL in pad_right(self.texts, 0))
        last_B = mask_BL.sum(-1) - 1
        column_C, index_B = torch.unique(last_B, return_inverse=True)
        logits_BCV: Tensor = self.model(
            input_ids=ids_BL,
            attention_mask=mask_BL.long(),
            use_cache=False,
            logits_to_keep=column_C,
        ).logits
        if logits_BCV.shape[1] != len(column_C):  # a model that gives those of all columns
            index_B = last_B
        return logits_BCV[torch.arange(len(index_B), device=index_B.device), index_B]


def growing_cache(config: PretrainedConfig) -> DynamicCache:
    """Return transformers' cache for a model, with room in the layers that keep every token."""
    cache = DynamicCache(config=config)
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[index] = _GrowingLayer()  # type: ignore[no-untyped-call]
    return cache


class _GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values as the first columns of larger tensors, (rows, heads, columns, size)."""

    _keys: Tensor
    _values: Tensor

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Return all keys and values, the new ones last."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._keys, self._values = key_states[:, :, :0], value_states[:, :, :0]
        used = self.get_seq_length()
        columns = used + key_states.shape[2]
        if columns > self._keys.shape[2]:
            self._keys = _longer(self._keys, used, columns + SPARE_COLUMNS)
            self._values = _longer(self._values, used, columns + SPARE_COLUMNS)
        self._keys[:, :, used:columns] = key_states
        self._values[:, :, used:columns] = value_states
        return self._set_columns(columns)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep some of the rows, in this order."""
        used = self.get_seq_length()
        if used:  # else a layer that shares another's keys
            self._keys = self._keys.index_select(0, beam_idx)
            self._values = self._values.index_select(0, beam_idx)
            self._set_columns(used)

    def _set_columns(self, columns: int) -> tuple[Tensor, Tensor]:
        visible = self._keys[:, :, :columns], self._values[:, :, :columns]
        self.keys, self.values = visible
        return visible


def _longer(x_BHLD: Tensor, used: int, columns: int) -> Tensor:
    rows, heads, _, size = x_BHLD.shape
    longer_BHLD = x_BHLD.new_empty(rows, heads, columns, size)
    longer_BHLD[:, :, :used] = x_BHLD[:, :, :used]
    return longer_BHLD


@dataclass(frozen=True, slots=True)
class Decoding:
    """The way in which rows decode; `obstacle` is a reason against cache and prompts in parts."""

    cached: bool
    in_parts: bool
    obstacle: str | None = None

    def rows(
        self, model: PreTrainedModel, requests: Sequence[Request], adapters: RowAdapters | None
    ) -> Rows:
        """Return rows that have processed their prompts, which are sorted by length."""
        if not self.cached:
            return UncachedRows(model, requests, adapters)
        part_tokens = None if self.in_parts else len(requests[-1][0])
        return CachedRows(model, requests, adapters, part_tokens)


_decodings: WeakKeyDictionary[PreTrainedModel, dict[object, Decoding]] = WeakKeyDictionary()


def decoding_of(model: PreTrainedModel, adapters: RowAdapters | None, longest: int) -> Decoding:
    """Return the way to decode at most `longest` tokens; compared once a model, in eval mode.

    Warns where that is slower than a cache.
    """
    windows = attention_windows(model).values()
    outgrown = tuple(window for window in windows if window < longest)
    key = (attention_name(model.config), adapters is not None, outgrown)
    decodings = _decodings.setdefault(model, {})
    if key not in decodings:
        decodings[key] = decoding = _compare(model, adapters, outgrown)
        if not decoding.cached:
            name = type(model).__name__
            log.warning("%s samples without a cache, which is slower: %s", name, decoding.obstacle)
    return decodings[key]


_EXAMPLES = (3, 9, 9, 14)  # tokens of prompts; two rows have one prompt
_STEPS = 4  # tokens that are appended
_DROPPED_AFTER = 2


def _compare(
    model: PreTrainedModel, adapters: RowAdapters | None, outgrown: tuple[int, ...]
) -> Decoding:
    lengths = [*_EXAMPLES, *(window + 2 for window in outgrown)]
    prompts = [example_ids(model, length).tolist() for length in lengths]
    requests = [(prompt, 0) for prompt in sorted(prompts, key=len)]
    token_SB = example_ids(model, _STEPS * len(requests), 5).view(_STEPS, -1)
    expected = _logits(UncachedRows(model, requests, adapters), token_SB)
    obstacle: str | None = None
    for part in (max(4, max(lengths) // 3), max(lengths)):  # each prompt but the shortest is cut
        try:
            rows = CachedRows(model, requests, adapters, part, pad_id=prompts[0][1])
            logits = _logits(rows, token_SB)
            pairs = zip(logits, expected, strict=True)
            worst = max(difference(model, a, b) for a, b in pairs)
            if worst <= tolerance_of(model, expected[0]):
                return Decoding(True, part < max(lengths), obstacle)
            obstacle = f"logits with its cache differ from those of a whole pass by {worst:.1e}"
        except FORWARD_ERRORS as error:
            obstacle = f"its cache refused ({first_line(error)[:80]})"
    return Decoding(False, False, obstacle)


def _logits(rows: Rows, token_SB: Tensor) -> list[Tensor]:
    """Return logits_BV after the prompts and each token; the second row is dropped on the way."""
    logits = [rows.logits_BV.float()]
    for step, token_B in enumerate(token_SB):
        if step == _DROPPED_AFTER:
            rest = [row for row in range(len(token_B)) if row != 1]
            rows.keep(torch.tensor(rest, device=token_B.device))
        rows.append(token_B[rows.row_B])
        logits.append(rows.logits_BV.float())
    return logits
