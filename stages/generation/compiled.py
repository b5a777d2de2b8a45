"""Rows that decode by a compiled step of few shapes: on a GPU, a token is one CUDA graph.

Eager decoding launches some hundred kernels a token, each for microseconds of work. Here the step
is compiled, and its inputs never move: keys and values are in buffers for a number of rows and
columns, rows leave by halves, columns come in blocks. The buffers stay with the model.

Dimension key:  B rows,  H heads,  L columns,  D head size,  V vocabulary.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from reward_models.compat import attention_name
from reward_models.packed_attention import ATTENTION
from stages.distributed.compat import mark_static_address, recompile_limit
from stages.generation.kv_cache import CachedRows, Request

BLOCK = 128  # columns
BACKEND = "inductor"
_FEWEST_ROWS = 8  # to halve no further
_SHAPES = 64  # that one step may be compiled for

_buffers_of: WeakKeyDictionary[PreTrainedModel, dict[tuple[int, int], list[Tensor]]] = (
    WeakKeyDictionary()
)


class CompiledRows(CachedRows):
    """Rows whose prompts are processed as usual, and their further tokens by a compiled step.

    Their number is rounded up to a power of two; the additional ones repeat the first.
    """

    def __init__(
        self, model: PreTrainedModel, requests: Sequence[Request], max_new_tokens: int
    ) -> None:
        """Process the prompts; ValueError for a model whose step cannot be compiled."""
        super().__init__(model, requests, None)
        _check(model, self.cache)
        more = _power_of_two(len(requests)) - len(requests)
        index_B = torch.arange(len(requests), device=model.device)
        index_B = torch.cat([index_B, index_B.new_zeros(more)])
        self.used = self.mask_BL.shape[1]
        self.columns = -(-(self.used + max_new_tokens) // BLOCK) * BLOCK
        self.logits_BV = self.logits_BV[index_B]
        self._move([x.index_select(0, index_B) for x in _keys_and_values(self.cache)], index_B)

    def rows_for(self, num_alive: int) -> int:
        """Return half of the rows, or half of those, where no more are alive."""
        return min(len(self.row_B), max(_FEWEST_ROWS, _power_of_two(num_alive)))

    def keep(self, index_B: Tensor) -> None:
        """Drop the rows that are not among these."""
        self._move([x.index_select(0, index_B)[:, :, : self.used] for x in self._fixed], index_B)

    def append(self, token_B: Tensor) -> None:
        """Append one token to every row and compute the logits of the next."""
        column_1 = torch.tensor([self.used], device=token_B.device)
        self._mask_B11L[..., self.used] = True
        with recompile_limit(_SHAPES):
            logits_BV = _compiled(token_B.device.type)(
                self.model,
                token_B[:, None],
                self.position_B[:, None],
                self._mask_B11L,
                column_1,
                self._fixed,
            )
        self.logits_BV = logits_BV.clone()  # the next replay of a graph writes there
        self.position_B = self.position_B + 1
        self.used += 1

    def _move(self, parts: list[Tensor], index_B: Tensor) -> None:
        """Copy keys and values of some rows into the buffers for that number of rows."""
        self.row_B, self.position_B = self.row_B[index_B], self.position_B[index_B]
        self.mask_BL = self.mask_BL[index_B]
        rows, prompt = len(index_B), self.mask_BL.shape[1]
        self._fixed = _buffers(self.model, rows, self.columns, parts)
        for fixed, part in zip(self._fixed, parts, strict=True):
            fixed[:, :, : self.used] = part
        self._mask_B11L = torch.zeros(
            rows, 1, 1, self.columns, dtype=torch.bool, device=index_B.device
        )
        self._mask_B11L[:, 0, 0, :prompt] = self.mask_BL.bool()
        self._mask_B11L[..., prompt : self.used] = True


def _keys_and_values(cache: Cache) -> Iterator[Tensor]:
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        for x in (layer.keys, layer.values):
            assert isinstance(x, Tensor)
            yield x


def _check(model: PreTrainedModel, cache: Cache) -> None:
    if attention_name(model.config) not in ("sdpa", ATTENTION):
        raise ValueError(
            "sampling.compiled is true, but this model's attention is "
            f"'{attention_name(model.config)}'; expected sdpa without prefixes or prompts"
        )
    if not all(isinstance(layer, DynamicLayer) and not layer.is_sliding for layer in cache.layers):
        raise ValueError("sampling.compiled is true, but a layer of this model forgets tokens")


def _power_of_two(rows: int) -> int:
    return 1 << (rows - 1).bit_length()


def _buffers(model: PreTrainedModel, rows: int, columns: int, like: list[Tensor]) -> list[Tensor]:
    """Return keys and values in turn, (rows, H, columns, D) each, with what they held."""
    by_shape = _buffers_of.setdefault(model, {})
    buffers = by_shape.get((rows, columns))
    if buffers is None or buffers[0].dtype != like[0].dtype or buffers[0].device != like[0].device:
        buffers = [x.new_zeros(rows, x.shape[1], columns, x.shape[3]) for x in like]
        for buffer in buffers:
            mark_static_address(buffer)  # else a CUDA graph would copy it
        by_shape[rows, columns] = buffers
    return buffers


class _Fixed(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer's whole buffers, and the column of the next token."""

    def __init__(self, keys: Tensor, values: Tensor, column_1: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values, self._column_1 = keys, values, column_1
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Return all columns, with the new one."""
        assert self.keys is not None
        assert self.values is not None
        self.keys.index_copy_(2, self._column_1, key_states)
        self.values.index_copy_(2, self._column_1, value_states)
        return self.keys, self.values


def _step(
    model: PreTrainedModel,
    ids_B1: Tensor,
    position_B1: Tensor,
    mask_B11L: Tensor,
    column_1: Tensor,
    fixed: list[Tensor],
) -> Tensor:
    layers: list[Any] = [_Fixed(*kv, column_1) for kv in zip(fixed[::2], fixed[1::2], strict=True)]
    output = model(
        input_ids=ids_B1,
        attention_mask=mask_B11L,
        position_ids=position_B1,
        past_key_values=Cache(layers=layers),
        use_cache=True,
        logits_to_keep=1,
    )
    logits_BV: Tensor = output.logits[:, -1]
    return logits_BV


@cache
def _compiled(device: str) -> Any:
    """Return the step: a CUDA graph for each shape; elsewhere one for any rows and columns."""
    if device == "cuda":
        return torch.compile(_step, mode="reduce-overhead", dynamic=False, backend=BACKEND)
    return torch.compile(_step, dynamic=True, backend=BACKEND)
