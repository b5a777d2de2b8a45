"""The cache with room holds what transformers' own does, and is seldom copied."""

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, MistralConfig
from transformers.cache_utils import DynamicSlidingWindowLayer

from stages.generation.kv_cache import SPARE_COLUMNS, growing_cache

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 40}


def drawn(rows: int, tokens: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    key_BHQD, value_BHQD = torch.randn(2, rows, 4, tokens, 8, generator=generator).unbind()
    return key_BHQD, value_BHQD


def test_what_is_held_is_what_transformers_holds_while_rows_leave() -> None:
    config, generator = LlamaConfig(**SHAPE), torch.Generator().manual_seed(0)
    caches, rows = (growing_cache(config), DynamicCache(config=config)), 6
    for step in range(2 * SPARE_COLUMNS + 3):
        new = [drawn(rows, 9 if step == 0 else 1, generator) for _ in range(2)]
        for layer, states in enumerate(new):
            ours, theirs = (cache.update(*states, layer) for cache in caches)
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert caches[0].get_seq_length() == caches[1].get_seq_length() == 9 + step
        if step % 20 == 19:
            rest = torch.arange(rows)[torch.arange(rows) != 1]
            rows -= 1
            for cache in caches:
                cache.reorder_cache(rest)


def test_it_is_copied_once_in_so_many_tokens() -> None:
    cache, generator = growing_cache(LlamaConfig(**SHAPE)), torch.Generator().manual_seed(0)
    addresses = set()
    for step in range(1 + 3 * SPARE_COLUMNS):
        keys, _ = cache.update(*drawn(2, 9 if step == 0 else 1, generator), 0)
        addresses.add(keys.data_ptr())
    assert len(addresses) <= 4


def test_layers_that_forget_stay_as_they_are() -> None:
    layers = growing_cache(MistralConfig(**SHAPE, sliding_window=4)).layers
    assert layers
    assert all(type(layer) is DynamicSlidingWindowLayer for layer in layers)


@pytest.mark.parametrize("rows", [[0], [2, 2, 0]])
def test_rows_may_be_copied(rows: list[int]) -> None:
    cache, generator = growing_cache(LlamaConfig(**SHAPE)), torch.Generator().manual_seed(0)
    keys, values = cache.update(*drawn(3, 5, generator), 0)
    cache.reorder_cache(torch.tensor(rows))
    assert torch.equal(cache.layers[0].keys, keys[rows])
    assert torch.equal(cache.layers[0].values, values[rows])
