"""Attention that sees a set's keys and values before all others, and can be listened to.

The attention function is chosen by name in a model's config; what stands before its keys is given
module by module. `listening` gives the keys and values that every attention module computes, which
is how a soft prompt becomes a prefix (see `prompt`).

Dimension key:  B rows,  H key-value heads,  P prefix positions,  D head size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stages.adaptation.renamed_attention import rename_attention
from stages.adaptation.row_prefix import RowPrefix, register_prefixes

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
