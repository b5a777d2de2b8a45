"""The private parts of torch and transformers that `reward_models` relies on, as they were seen."""

from pathlib import Path

import torch
from transformers import LlamaConfig

from reward_models.backbone import load_causal_lm, transformer
from reward_models.compat import (
    FakeTensorMode,
    attention_name,
    set_attention_name,
    storage_key,
    storages,
    whole_modules,
)
from tests.reward_models.tiny import tiny_base


def test_a_model_s_attention_has_a_name_that_can_be_set(tmp_path: Path) -> None:
    model = transformer(load_causal_lm(tiny_base(tmp_path / "base")))
    assert attention_name(model.config) == "sdpa"
    set_attention_name(model.config, "eager")
    assert attention_name(model.config) == "eager"
    assert all(layer.self_attn.config._attn_implementation == "eager" for layer in model.layers)


def test_a_model_names_the_modules_that_are_sharded_whole(tmp_path: Path) -> None:
    names = whole_modules(transformer(load_causal_lm(tiny_base(tmp_path / "base"))))
    assert names is not None
    assert LlamaConfig.model_type in "".join(names).lower()


def test_tensors_on_one_storage_have_one_key_also_where_they_are_fake() -> None:
    with FakeTensorMode():
        tensor, other = torch.zeros(4), torch.zeros(4)
        keys = [storage_key(storage) for storage in storages([tensor, {"view": tensor[1:]}, other])]
    assert keys[0] == keys[1] != keys[2]
