"""The positions of a model follow from its config, and end where a learned table ends."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from reward_models.context_limit import (
    ContextLimit,
    context_limit,
    hard_position_limit,
    max_positions,
)
from reward_models.model import RewardModel
from reward_models.records import Prompt
from stages.adapters.config import LoRA, Prefix
from stages.adapters.config import Prompt as SoftPrompt
from stages.models import adapt, load_policy, load_tokenizer, save_policy
from stages.prompt_lengths import adapted_context_limit, require_fit
from tests.reward_models.tiny import tiny_base

SMALL: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TABLES = {
    "gpt2": {},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "gpt_neo": {"attention_types": [[["global"], 1]], "num_layers": 1},
    "gpt_bigcode": {},
    "biogpt": {},
    "openai-gpt": {"afn": "gelu"},
    "xglm": {"ffn_dim": 32, "attention_heads": 2, "num_layers": 1, "d_model": 16},
    "ctrl": {"n_positions": 12, "n_embd": 16, "n_layer": 1, "n_head": 2, "dff": 32},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4, "n_embd": 16, "n_head": 4, "n_layer": 1},
}


def reads(model: torch.nn.Module, tokens: int) -> bool:
    ids_BL = torch.full((1, tokens), 5)
    try:
        with torch.no_grad():
            model(input_ids=ids_BL, position_ids=torch.arange(tokens)[None], use_cache=False)
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("kind", TABLES)
def test_a_learned_table_reads_its_limit(kind: str):
    own = {
        key: value
        for key, value in SMALL.items()
        if not (kind in ("ctrl", "xglm", "codegen") and key.startswith(("hidden", "num_", "inter")))
    }
    config = AutoConfig.for_model(kind, **{**own, **TABLES[kind]})
    model = AutoModelForCausalLM.from_config(config).eval()
    assert hard_position_limit(config) == max_positions(config) == 12
    if kind not in ("xglm", "ctrl"):  # whose sinusoids grow, or which take no positions
        assert reads(model, 12)
        assert not reads(model, 14)


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "default"}, 12),
        ({"rope_type": "linear", "factor": 4.0}, 48),
        ({"rope_type": "dynamic", "factor": 2.0}, 12),  # beyond, it turns all texts otherwise
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12}, 48),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "original_max_position_embeddings": 1,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
            12,
        ),
    ],
)
def test_rotations_are_limited_by_the_length_they_are_scaled_to(rope: dict[str, Any], limit: int):
    config = AutoConfig.for_model("llama", **SMALL, rope_parameters={"rope_theta": 1e4, **rope})
    assert max_positions(config) == limit
    assert hard_position_limit(config) == (limit if rope["rope_type"] == "dynamic" else None)


@pytest.mark.parametrize(
    ("kind", "more"), [("bloom", {}), ("falcon", {"alibi": True}), ("mamba", {})]
)
def test_alibi_and_recurrences_have_no_limit(kind: str, more: dict[str, Any]):
    own = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 32}
    assert max_positions(AutoConfig.for_model(kind, **own, **more)) is None


def test_an_encoder_s_first_rows_are_no_positions():
    assert max_positions(AutoConfig.for_model("roberta", **{**SMALL, "pad_token_id": 1})) == 10


@pytest.mark.parametrize(
    ("adaptation", "taken"), [(SoftPrompt(length=3), 3), (Prefix(length=3), 0), (LoRA(rank=2), 0)]
)
def test_a_soft_prompt_takes_positions_and_other_sets_take_none(
    adaptation: Any, taken: int, tmp_path: Path
):
    base = tiny_base(tmp_path / "base")
    assert adapted_context_limit(base, adaptation).tokens == 64 - taken
    save_policy(adapt(load_policy(base), adaptation), load_tokenizer(base), tmp_path / "set")
    assert context_limit(tmp_path / "set").tokens == 64 - taken
    assert adapted_context_limit(tmp_path / "set", adaptation).tokens == 64 - taken


def test_a_reward_model_has_the_room_of_what_it_sits_on(tmp_path: Path):
    base = tiny_base(tmp_path / "base")
    RewardModel.from_base(base, seed=0).save(tmp_path / "whole")
    probe = {"base": str(base), "pooling": "last", "inner_width": 0}
    RewardModel.probe(load_policy(base), 0, **probe).save(tmp_path / "probe")
    adapted = adapt(load_policy(base), SoftPrompt(length=3))
    RewardModel.on(adapted, 0, base=str(base)).save(tmp_path / "prompt")
    rooms = [context_limit(tmp_path / name).tokens for name in ("whole", "probe", "prompt")]
    assert rooms == [64, 64, 61]


def test_the_longest_prompt_that_fits_fits_and_one_token_more_is_one_line(tmp_path: Path):
    tokenizer = load_tokenizer(tiny_base(tmp_path / "base"))
    room = ContextLimit("base", 20)
    prompts = [Prompt("w1 " * count) for count in (3, 16, 5)]
    require_fit(tokenizer, prompts, 4, [room], "prompts")
    with pytest.raises(ValueError, match=r"longest prompt, 'w1 .*base has 19 positions") as caught:
        require_fit(tokenizer, prompts, 4, [ContextLimit("base", 19)], "prompts")
    assert "\n" not in str(caught.value)
