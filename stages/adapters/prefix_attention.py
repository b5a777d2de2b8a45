"""Attention to given keys and values before a text's own.

The attention function is chosen by name in a model's config; the keys and values before its own are
set module by module, for every row alike or row by row. `captured_keys_and_values` records the keys
and values that every attention module computes, which turns a soft prompt into a prefix.

Dimension key:  B rows,  H key-value heads,  P prefix positions,  Q queries,  K keys,  D head size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reward_models.backbone import transformer
from reward_models.compat import attention_name, set_attention_name
from reward_models.packed_attention import (
    PrependKeys,
    attention_mismatch,
    register_attention,
    uses_sdpa,
)

ATTENTION = "sdpa_with_prefix"
KeysAndValues = dict[nn.Module, tuple[Tensor, Tensor]]  # key_BHKD and value_BHKD of a module


@dataclass(frozen=True, slots=True)
class RowPrefix:
    """Keys and values before those of one layer; `keep_BP` false = not there."""

    key_BHPD: Tensor
    value_BHPD: Tensor
    keep_BP: Tensor

    @classmethod
    def of_every_row(cls, key_HPD: Tensor, value_HPD: Tensor) -> Self:
        """Return the same prefix for all rows."""
        keep_1P = torch.ones(1, key_HPD.shape[1], dtype=torch.bool, device=key_HPD.device)
        return cls(key_HPD[None], value_HPD[None], keep_1P)

    def expanded(self, rows: int) -> Self:
        """Return the prefix of one row for so many; one of so many rows is returned as it is."""
        if len(self.keep_BP) == rows:
            return self
        each = (self.key_BHPD, self.value_BHPD, self.keep_BP)
        return type(self)(*(x_B.expand(rows, *x_B.shape[1:]) for x_B in each))


_prefixes: WeakKeyDictionary[nn.Module, RowPrefix] = WeakKeyDictionary()
_captures: list[KeysAndValues] = []


def use_prefix_attention(model: PreTrainedModel, user: str = "prefixes and prompts need") -> None:
    """Let the model's attention take prefixes from now on; without any it is what it was.

    Raises ValueError without sdpa, and where the model computes something else under another name.
    A model without weights (one that is only measured) is not tried.
    """
    before = attention_name(model.config)
    if not uses_sdpa(model):
        raise ValueError(f"attention is '{before}'; {user} 'sdpa'")
    change = partial(set_attention_name, model.config, ATTENTION)
    if model.device.type == "meta":
        change()
        return
    obstacle = attention_mismatch([transformer(model)], change)
    if obstacle is not None:
        raise ValueError(
            f"{type(model).__name__}: {user} attention that can be chosen by name; {obstacle}"
        )


@contextmanager
def prefix_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let the model's attention take prefixes for a while; they are gone afterwards."""
    before = attention_name(model.config)
    use_prefix_attention(model, "users' prefixes need")
    try:
        yield
    finally:
        set_attention_name(model.config, before)
        for module in model.modules():
            remove_prefix(module)


def set_prefix(attention: nn.Module, prefix: RowPrefix) -> None:
    """Put the prefix before the keys and values of this attention module."""
    _prefixes[attention] = prefix


def remove_prefix(attention: nn.Module) -> None:
    """Leave the attention module without a prefix."""
    _prefixes.pop(attention, None)


@contextmanager
def captured_keys_and_values() -> Iterator[KeysAndValues]:
    """Record the keys and values that attention modules compute meanwhile."""
    captured: KeysAndValues = {}
    _captures.append(captured)
    try:
        yield captured
    finally:
        _captures.remove(captured)


def is_capturing() -> bool:
    """Return true where a prompt is run alone, to become a prefix."""
    return bool(_captures)


def prepended(
    prefix: RowPrefix, key_BHKD: Tensor, value_BHKD: Tensor, mask: Tensor | None, queries: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys and values with the prefix before them, and their mask (B, 1, Q, P + K).

    A mask of None means causal: the last query sees all keys.
    """
    rows, _, keys, _ = key_BHKD.shape
    prefix = prefix.expanded(rows)
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


def _prefix_of(module: nn.Module, key_BHKD: Tensor, value_BHKD: Tensor) -> PrependKeys | None:
    for captured in _captures:
        captured[module] = (key_BHKD, value_BHKD)
    prefix = _prefixes.get(module)
    return None if prefix is None else partial(prepended, prefix)


register_attention(ATTENTION, _prefix_of)
