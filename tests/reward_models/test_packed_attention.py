"""Attention within segments against the mask that says the same, and what holds of any model."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AutoConfig,
    LlamaConfig,
    LlamaForCausalLM,
    modeling_flash_attention_utils,
)

from reward_models.compat import set_attention_name
from reward_models.packed_attention import STEM, PackedSegments, enable_packing, segment_table

Forest = list[tuple[int, list[int]]]  # the tokens of each stem, and of each of its branches
FORESTS = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(1, 5), max_size=4)), min_size=1, max_size=4
)


def table(forest: Forest) -> list[tuple[int, int, int]]:
    segments, begin = [], 0
    for number, (stem, branches) in enumerate(forest):
        for count, kind in ((stem, STEM), *((branch, number) for branch in branches)):
            segments.append((begin, count, kind))
            begin += count
    return segments


def seen_NN(forest: Forest) -> Tensor:  # noqa: N802 - named for its shape
    """The attention mask by the definition of stem and branch."""
    owner: list[tuple[int, int]] = []
    for number, (stem, branches) in enumerate(forest):
        for branch, count in enumerate((stem, *branches)):
            owner += [(number, branch)] * count
    return torch.tensor(
        [
            [j <= i and a == c and b in (0, d) for j, (a, b) in enumerate(owner)]
            for i, (c, d) in enumerate(owner)
        ]
    )


def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    output = scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None)
    return output.transpose(1, 2)


@given(FORESTS)
def test_segments_give_the_outputs_and_gradients_of_a_mask_over_the_row(forest: Forest):
    seen = seen_NN(forest)
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, 1, 2, len(seen), 4, dtype=torch.float64, generator=generator)
    query, key, value = inputs = tuple(draw().requires_grad_() for _ in range(3))
    results = []
    weight_1NHD = draw().transpose(1, 2)
    segments = PackedSegments.of(segment_table(table(forest)))
    packed_1NHD = segments.attend(plain, query, key, value)
    masked_1NHD = plain(query, key, value, seen[None, None])
    for output_1NHD in (packed_1NHD, masked_1NHD):
        gradients = torch.autograd.grad((output_1NHD * weight_1NHD).sum(), inputs)
        results.append((output_1NHD, *gradients))
    for of_pieces, of_mask in zip(*results, strict=True):
        torch.testing.assert_close(of_pieces, of_mask, rtol=1e-9, atol=1e-9)


def tiny(**changes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 40}
    config = LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2, **changes)
    return LlamaForCausalLM(config).eval()


def inputs_of(forest: Forest) -> dict[str, object]:
    starts, position_list = 0, []
    for stem, branches in forest:
        position_list += [*range(stem), *(stem + k for branch in branches for k in range(branch))]
        starts += stem + sum(branches)
    ids_1N = torch.arange(2, 2 + starts)[None]
    segments = PackedSegments.of(segment_table(table(forest)))
    return {
        "input_ids": ids_1N,
        "position_ids": torch.tensor([position_list]),
        **segments.as_inputs(),
    }


def test_a_layer_recomputed_for_its_gradient_gets_its_own_segments() -> None:
    """Two rows are read before either is gone back through."""
    model, gradients = tiny(), []
    enable_packing(model)
    for anew in (False, True):
        if anew:
            model.train()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        rows = [inputs_of(forest) for forest in ([(3, [2, 4]), (2, [1])], [(5, []), (4, [3, 3])])]
        losses = [model(**row, use_cache=False).logits.logsumexp(-1).sum() for row in rows]
        model.zero_grad()
        torch.stack(losses).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for first, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, first)


def test_attention_in_16_bits_takes_pieces() -> None:
    model, row = tiny(), inputs_of([(3, [2, 4]), (2, [1])])
    enable_packing(model)
    exact = model(**row, use_cache=False).logits
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(**row, use_cache=False).logits
    torch.testing.assert_close(rounded.float(), exact, rtol=0.1, atol=0.05)


def test_a_model_with_packing_is_saved_as_without(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path / "before")
    enable_packing(model)
    model.save_pretrained(tmp_path / "after")
    names = ("before", "after")
    before, after = ((tmp_path / name / "config.json").read_text() for name in names)
    assert before == after
    assert AutoConfig.from_pretrained(tmp_path / "after")._attn_implementation != "sdpa_packed"


def test_attention_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="its attention is 'eager'; expected sdpa or flash"):
        enable_packing(tiny(attn_implementation="eager"))


def varlen(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, **_: Any
) -> Tensor:
    """Flash attention's function for variable lengths, text by text: the last query sees all."""
    outputs = []
    queries, keys = (x.tolist() for x in (cu_seqlens_q, cu_seqlens_k))
    for start, end, first, last in zip(queries, queries[1:], keys, keys[1:], strict=False):
        q, k, v = query[start:end], key[first:last], value[first:last]
        seen = torch.ones(end - start, last - first, dtype=torch.bool)
        seen = seen.tril((last - first) - (end - start))
        heads = (x.transpose(0, 1)[None] for x in (q, k, v))
        out = scaled_dot_product_attention(*heads, attn_mask=seen, enable_gqa=True)
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)


def test_flash_attention_takes_stems_and_branches_of_any_lengths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = inputs_of([(3, [2, 4]), (5, []), (2, [1])])
    packed, flash = tiny(), tiny()
    enable_packing(packed)
    set_attention_name(flash.config, "flash_attention_2")
    enable_packing(flash)
    enable_packing(flash)  # a second time changes nothing
    libraries: list[str] = []

    def library(name: str) -> Any:
        libraries.append(name)
        return (None, varlen, None, None, None), (lambda **_: {}, None)

    monkeypatch.setattr(modeling_flash_attention_utils, "lazy_import_flash_attention", library)
    outputs = [model(**row, use_cache=False).logits for model in (packed, flash)]
    torch.testing.assert_close(*outputs)
    assert set(libraries) == {"flash_attention_2"}
