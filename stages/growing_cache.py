"""A KV cache with room for the tokens to come.

transformers' own is copied whole for every token. This one is copied once in `ROOM` tokens; what
attention reads is a view of it.
"""

from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

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
