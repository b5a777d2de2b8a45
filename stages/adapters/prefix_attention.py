"""Attention that sees a set's keys and values before all others, and can be listened to.

The attention function is chosen by name in a model's config; what stands before its keys is given
module by module. `listening` gives the keys and values that every attention module computes, which
is how a soft prompt becomes a prefix (see `prompt`).

Dimension key:  B rows,  H key-value heads,  P prefix positions,  D head size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reward_models.backbone import transformer
from reward_models.packed_attention import (
    PrependKeys,
    attention_mismatch,
    register_attention,
    uses_sdpa,
)


def rename_attention(model: PreTrainedModel, name: str, wanted_by: str) -> None:
    """Let the model's attention be the one called `name`, which adds nothing by itself.

    Raises ValueError without sdpa, and where the model computes something else under that name; it
    is as it was then. A model without weights (one that is only measured) is taken at its word.
    """
    before = model.config._attn_implementation
    if not uses_sdpa(model):
        raise ValueError(f"attention is '{before}'; {wanted_by} 'sdpa'")

    def change() -> None:
        model.config._attn_implementation = name

    if model.device.type == "meta":
        change()
        return
    obstacle = attention_mismatch([transformer(model)], change)
    if obstacle is not None:
        raise ValueError(
            f"{type(model).__name__}: {wanted_by} attention that can be chosen by name; {obstacle}"
        )


ROW_ATTENTION = "sdpa_with_row_prefixes"


@dataclass(frozen=True, slots=True)
class RowPrefix:
    """What stands before the keys and values of one layer; `keep_BP` false = not there."""

    key_BHPD: Tensor
    value_BHPD: Tensor
    keep_BP: Tensor

    def of_every(self, rows: int) -> Self:
        """The only row's, for so many; a prefix of so many rows is as it was."""
        if len(self.keep_BP) == rows:
            return self
        each = (self.key_BHPD, self.value_BHPD, self.keep_BP)
        return type(self)(*(x_B.expand(rows, *x_B.shape[1:]) for x_B in each))


PrefixOf = Callable[[nn.Module, Tensor, Tensor], RowPrefix | None]  # module, key_BHKD, value_BHKD

_row_prefix_of: WeakKeyDictionary[nn.Module, RowPrefix] = WeakKeyDictionary()


@contextmanager
def row_prefix_attention(model: PreTrainedModel) -> Iterator[None]:
    """While it lasts, `model` attends to the prefixes given by `set_prefix`."""
    before = model.config._attn_implementation
    rename_attention(model, ROW_ATTENTION, "users' prefixes need")
    try:
        yield
    finally:
        model.config._attn_implementation = before
        for module in model.modules():
            _row_prefix_of.pop(module, None)


def set_prefix(attention: nn.Module, prefix: RowPrefix) -> None:
    """Put the rows' prefix before the keys and values of this attention module."""
    _row_prefix_of[attention] = prefix


def prepended(
    prefix: RowPrefix, key_BHKD: Tensor, value_BHKD: Tensor, mask: Tensor | None, queries: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values with the prefix before them, and the mask (B, 1, Q, P + K) that says so.

    A mask of None means causal: the last query sees all keys.
    """
    rows, _, keys, _ = key_BHKD.shape
    prefix = prefix.of_every(rows)
    if mask is None:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=key_BHKD.device)
        mask = mask.tril(keys - queries)[None, None]
    mask = mask[..., :keys].expand(rows, -1, -1, -1)
    before = prefix.keep_BP[:, None, None, :].expand(-1, mask.shape[1], queries, -1)
    if mask.dtype != torch.bool:  # additive
        lowest = torch.finfo(mask.dtype).min
        before = torch.zeros(before.shape, dtype=mask.dtype, device=mask.device).masked_fill(
            ~before, lowest
        )
    key = torch.cat([prefix.key_BHPD.to(key_BHKD.dtype), key_BHKD], dim=2)
    value = torch.cat([prefix.value_BHPD.to(value_BHKD.dtype), value_BHKD], dim=2)
    return key, value, torch.cat([before, mask], dim=-1)


def register_prefixes(name: str, prefix_of: PrefixOf) -> None:
    """Let models choose `name`: sdpa attention that asks what stands before each module's keys."""

    def before_of(module: nn.Module, key_BHKD: Tensor, value_BHKD: Tensor) -> PrependKeys | None:
        prefix = prefix_of(module, key_BHKD, value_BHKD)
        return None if prefix is None else partial(prepended, prefix)

    register_attention(name, before_of)


register_prefixes(ROW_ATTENTION, lambda module, _key, _value: _row_prefix_of.get(module))


ATTENTION = "sdpa_with_set"
Heard = dict[nn.Module, tuple[Tensor, Tensor]]

_prefix_of: WeakKeyDictionary[nn.Module, tuple[Tensor, Tensor]] = WeakKeyDictionary()
_listeners: list[Heard] = []


def let_attend_to_sets(model: PreTrainedModel) -> None:
    """From now on this model's attention looks for prefixes.

    Raises ValueError without sdpa, and where the model would compute something else besides.
    """
    rename_attention(model, ATTENTION, "prefixes and prompts need")


def put_before(attention: nn.Module, key_HPD: Tensor, value_HPD: Tensor) -> None:
    """Every row of this module sees these keys and values before its own."""
    _prefix_of[attention] = (key_HPD, value_HPD)


def put_nothing_before(attention: nn.Module) -> None:
    """The module is as it was."""
    _prefix_of.pop(attention, None)


@contextmanager
def listening() -> Iterator[Heard]:
    """The keys_BHLD and values_BHLD that attention modules compute meanwhile."""
    heard: Heard = {}
    _listeners.append(heard)
    try:
        yield heard
    finally:
        _listeners.remove(heard)


def _prefix(module: nn.Module, key_BHLD: Tensor, value_BHLD: Tensor) -> RowPrefix | None:
    for heard in _listeners:
        heard[module] = (key_BHLD, value_BHLD)
    found = _prefix_of.get(module)
    return None if found is None else _for_rows(*found, len(key_BHLD))


def _for_rows(key_HPD: Tensor, value_HPD: Tensor, rows: int) -> RowPrefix:
    keep_BP = torch.ones(rows, key_HPD.shape[1], dtype=torch.bool, device=key_HPD.device)
    return RowPrefix(key_HPD.expand(rows, -1, -1, -1), value_HPD.expand(rows, -1, -1, -1), keep_BP)


register_prefixes(ATTENTION, _prefix)
