"""The private parts of torch and transformers that lower floors rely on."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from reward_models.compat import (
    FakeTensorMode,
    attention_name,
    set_attention_name,
    storage_key,
    storages,
    whole_modules,
)


def test_the_attention_function_of_a_config_is_what_was_set():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=5))
    set_attention_name(model.config, "eager")
    assert attention_name(model.config) == "eager"
    assert set(whole_modules(model) or ()) == {"GPT2Block"}


def test_tensors_on_one_storage_have_one_key_also_where_they_are_fake():
    with FakeTensorMode():
        tensor, other = torch.zeros(4), torch.zeros(4)
        keys = [storage_key(storage) for storage in storages([tensor, {"view": tensor[1:]}, other])]
    assert keys[0] == keys[1] != keys[2]
