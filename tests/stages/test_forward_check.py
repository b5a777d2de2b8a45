"""Models are as they were after a way to read them was refused, and a text depends on no other."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from reward_models.backbone import transformer
from reward_models.model import RewardModel
from reward_models.packed_attention import ATTENTION, attention_mismatch, enable_packing
from stages.adapters.cached_layers import CachedLayers
from stages.adapters.config import LoRA
from stages.adapters.prefix_attention import prefix_attention, use_prefix_attention
from stages.forward_check import logits_of, padding_side
from stages.generation.config import SamplingConfig
from stages.generation.generate import Sampled, generate_responses
from stages.generation.kv_cache import decoding_of
from stages.generation.score import score_sequences
from stages.models import adapt, load_policy, load_tokenizer
from stages.ppo.config import PPOConfig
from stages.ppo.forward_checks import without_wrong_states
from stages.ppo.models import load_models
from stages.reward.shared_prompt import SeparateRows, choose_layout
from tests.architectures.observe import alone, assert_causal, prompts, ranked, read
from tests.architectures.tiny import save
from tests.reward_models.tiny import tiny_reward


def tiny(name: str, folder: Path) -> PreTrainedModel:
    return load_policy(save(name, folder / "base"))


@pytest.mark.parametrize("name", ["falcon, new decoder", "falcon, multi-query", "falcon, ALiBi"])
def test_attention_that_loses_its_mask_under_another_name_is_taken_back(name: str, tmp_path: Path):
    backbone = transformer(tiny(name, tmp_path))
    obstacle = attention_mismatch([backbone], lambda: enable_packing(backbone))
    assert obstacle is not None
    assert backbone.config._attn_implementation == "sdpa"
    assert_causal(backbone)


def test_attention_that_is_what_it_was_keeps_its_new_name(tmp_path: Path):
    backbone = transformer(tiny("llama", tmp_path))
    assert attention_mismatch([backbone], lambda: enable_packing(backbone)) is None
    assert backbone.config._attn_implementation == ATTENTION


def test_one_refusing_model_leaves_all_others_as_they_were(tmp_path: Path):
    llama, falcon = (tiny(n, tmp_path / n) for n in ("llama", "falcon, new decoder"))
    backbones = [transformer(llama), transformer(falcon)]

    def change() -> None:
        for backbone in backbones:
            enable_packing(backbone)

    assert attention_mismatch(backbones, change) is not None
    assert [backbone.config._attn_implementation for backbone in backbones] == ["sdpa", "sdpa"]


def test_what_is_raised_in_a_trial_leaves_the_model_as_it_was(tmp_path: Path):
    backbone = transformer(tiny("llama", tmp_path))

    def change() -> None:
        enable_packing(backbone)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attention_mismatch([backbone], change)
    assert backbone.config._attn_implementation == "sdpa"


def test_a_prefix_on_attention_that_loses_its_mask_is_refused(tmp_path: Path):
    model = tiny("falcon, new decoder", tmp_path)
    refused = r"chosen by name.* attends to later tokens"
    with pytest.raises(ValueError, match=refused):
        use_prefix_attention(model)
    with pytest.raises(ValueError, match=refused), prefix_attention(model):
        pass
    assert model.config._attn_implementation == "sdpa"
    assert_causal(transformer(model))


def test_the_longest_path_decides_where_a_window_is_shorter_than_a_text(tmp_path: Path):
    reward = RewardModel.from_base(save("mistral", tmp_path / "base"), seed=0)
    elements = ranked()  # the longest row has the shorter paths
    assert max(elements, key=lambda one: one.row_tokens).path_tokens < 16
    assert isinstance(choose_layout(reward, elements), SeparateRows)
    assert transformer(reward.backbone).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["phi3, LongRoPE", "llama, dynamic NTK"])
def test_positions_that_would_change_with_the_longest_text_end_where_they_do(
    name: str, tmp_path: Path
):
    policy = tiny(name, tmp_path)
    text = torch.randint(2, 250, (70,), generator=torch.Generator().manual_seed(1)).tolist()
    before = alone(policy, text[:20])
    alone(policy, text[:64])
    for _ in range(2):
        with pytest.raises(ValueError, match="70 tokens: with more than 64 the rotary positions"):
            alone(policy, text)
        assert torch.equal(alone(policy, text[:20]), before)
    reward = RewardModel.from_base(tmp_path / "base", seed=0)
    with pytest.raises(ValueError, match="the reward model has 64 positions"):
        score_sequences(reward, [text[:20], text])
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=24)
    with pytest.raises(ValueError, match=r"74 tokens, .* has 64 positions"):
        generate_responses(
            policy,
            load_tokenizer(tmp_path / "base"),
            [text[:50]],
            sampling,
            generator=torch.Generator().manual_seed(0),
        )


def test_a_cache_is_compared_once_and_again_where_texts_outgrow_a_window(tmp_path: Path):
    policy = tiny("mistral", tmp_path)
    with torch.inference_mode():
        short = decoding_of(policy, None, 15)
        assert short.cached
        assert decoding_of(policy, None, 12) is short
        assert decoding_of(policy, None, 40) is not short


def test_rows_are_padded_where_it_changes_nothing(tmp_path: Path):
    sides = {}
    for name in ("llama", "rwkv"):
        model = tiny(name, tmp_path / name)

        sides[name] = padding_side(logits_of(model), model, 20)
    assert sides == {"llama": "left", "rwkv": "right"}


def test_a_folder_with_router_logits_loads_without_them_and_keeps_its_coefficient(tmp_path: Path):
    policy = tiny("mixtral, router logits", tmp_path)
    assert not policy.config.output_router_logits
    assert policy.config.router_aux_loss_coef > 0


def test_an_adapter_scores_and_decodes_as_its_model(tmp_path: Path):
    source = save("llama", tmp_path / "base")
    policy = adapt(load_policy(source), LoRA(rank=2), load_tokenizer(source))
    with torch.inference_mode():
        assert decoding_of(policy, None, 30).cached


@pytest.mark.parametrize("name", ["llama", "gemma3n_text", "jamba", "gpt2"])
def test_states_of_lower_layers_are_kept_only_where_passes_without_those_agree(
    name: str, tmp_path: Path
):
    source = save(name, tmp_path / "base")
    reward = tiny_reward(source, tmp_path / "reward", seed=0)
    config = PPOConfig.model_validate({"adaptation": {"family": "full", "top_layers": 1}})
    models = load_models(
        *(source, reward, config.adaptation, config.models),
        seed=0,
        device=torch.device("cpu"),
    )
    roles = (models.policy, models.critic, models.reference, models.reward)
    models = without_wrong_states(replace(models, lower=CachedLayers(roles)), prompts()[-1])
    prompt_ids = prompts()
    responses = [Sampled([*prompt[:3], 9], ended=False) for prompt in prompt_ids]
    expected = read(replace(models, lower=CachedLayers()), prompt_ids, responses)
    for _ in range(2):  # the second time from states, where they are kept
        outputs = read(models, prompt_ids, responses)
        assert (
            max(float((a - b).abs().max()) for a, b in zip(outputs, expected, strict=True)) < 1e-4
        )
    assert (models.lower.num_bytes > 0) == (name != "gemma3n_text")
