"""Attention that sees a set's keys and values before all others, and can be listened to.

The attention function is chosen by name in a model's config; what stands before its keys is given
module by module. `listening` gives the keys and values that every attention module computes, which
is how a soft prompt becomes a prefix (see `prompt`).

Dimension key:  B rows,  H key-value heads,  P prefix positions,  D head size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from stages.adaptation.row_prefix import RowPrefix, prepended

ATTENTION = "sdpa_with_set"
Heard = dict[nn.Module, tuple[Tensor, Tensor]]

_prefix_of: WeakKeyDictionary[nn.Module, tuple[Tensor, Tensor]] = WeakKeyDictionary()
_listeners: list[Heard] = []


def let_attend_to_sets(model: PreTrainedModel) -> None:
    """From now on this model's attention looks for prefixes. Raises ValueError without sdpa."""
    before = model.config._attn_implementation
    if before not in ("sdpa", ATTENTION):
        raise ValueError(f"attention is '{before}'; prefixes and prompts need 'sdpa'")
    model.config._attn_implementation = ATTENTION


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


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **further: Any,  # what transformers hands to every attention function
) -> tuple[Tensor, None]:
    for heard in _listeners:
        heard[module] = (key, value)
    found = _prefix_of.get(module)
    if found is not None:
        before = _for_rows(*found, len(key))
        key, value, attention_mask = prepended(before, key, value, attention_mask, query.shape[2])
        is_causal = False
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout, scaling, is_causal, **further
    )


def _for_rows(key_HPD: Tensor, value_HPD: Tensor, rows: int) -> RowPrefix:
    keep_BP = torch.ones(rows, key_HPD.shape[1], dtype=torch.bool, device=key_HPD.device)
    return RowPrefix(key_HPD.expand(rows, -1, -1, -1), value_HPD.expand(rows, -1, -1, -1), keep_BP)


AttentionInterface.register(ATTENTION, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)
