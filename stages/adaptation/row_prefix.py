"""Attention in which every row of a batch has keys and values of its own before all others.

    softmax(q [P_k; K]^T / sqrt(d)) [P_v; V]        (Li & Liang 2021, with P_k, P_v the row's own)

A prefix stands before every token, so every query sees it, no position is shifted and no cache
entry is its own: padding, `generate` and the cache need no special case. Rows whose prefix is
shorter are filled up and masked, and a row without one reads as the bare model does.

Dimension key:  B rows,  H key-value heads,  P prefix positions,  D head size,  Q queries,  K keys.
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

from reward_models.pieces import Before, register_attention
from stages.adaptation.renamed_attention import rename_attention

ATTENTION = "sdpa_with_row_prefixes"


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

_prefix_of: WeakKeyDictionary[nn.Module, RowPrefix] = WeakKeyDictionary()


@contextmanager
def row_prefix_attention(model: PreTrainedModel) -> Iterator[None]:
    """While it lasts, `model` attends to the prefixes given by `set_prefix`."""
    before = model.config._attn_implementation
    rename_attention(model, ATTENTION, "users' prefixes need")
    try:
        yield
    finally:
        model.config._attn_implementation = before
        for module in model.modules():
            _prefix_of.pop(module, None)


def set_prefix(attention: nn.Module, prefix: RowPrefix) -> None:
    """Put the rows' prefix before the keys and values of this attention module."""
    _prefix_of[attention] = prefix


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

    def before_of(module: nn.Module, key_BHKD: Tensor, value_BHKD: Tensor) -> Before | None:
        prefix = prefix_of(module, key_BHKD, value_BHKD)
        return None if prefix is None else partial(prepended, prefix)

    register_attention(name, before_of)


register_prefixes(ATTENTION, lambda module, _key, _value: _prefix_of.get(module))
