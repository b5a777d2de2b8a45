"""Bases, tokenizers and adapters survive saving, and say in one line what is wrong with them."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from reward_models.backbone import weights_hash
from stages.adapters.config import Full, LoRA
from stages.models import (
    adapt,
    load_policy,
    load_tokenizer,
    save_policy,
    tokenizer_hash,
    trainable_parameters,
)

TEMPLATE = (
    "{% for m in messages %}{{ 'User: ' if m.role == 'user' else 'Assistant: ' }}"
    "{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def build_tokenizer(*specials: str, pad: str | None = "<|pad|>") -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>", *specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(
        ["User: who is there?\nAssistant: nobody, the text does not say."], trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|end|>", pad_token=pad, chat_template=TEMPLATE
    )


def llama(vocabulary: int) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def gpt2(vocabulary: int) -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    )


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tokenizer = build_tokenizer("<|pad|>")
    save_policy(llama(len(tokenizer)), tokenizer, tmp_path / "base")
    return tmp_path / "base"


IDS_BL = torch.tensor([[5, 9, 40, 7, 22]])


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS_BL).logits


def test_weights_stored_in_half_precision_come_back_in_float32(tmp_path):
    tokenizer = build_tokenizer("<|pad|>")
    save_policy(llama(len(tokenizer)).half(), tokenizer, tmp_path)
    assert load_policy(tmp_path).dtype == torch.float32


def test_a_pad_that_is_eos_gives_way_to_a_special_token_outside_the_template(tmp_path):
    build_tokenizer("<|first|>", "<|spare|>", pad="<|end|>").save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token == "<|spare|>"


def test_without_any_spare_token_a_pad_is_added_and_has_an_embedding(tmp_path):
    tokenizer = build_tokenizer(pad=None)
    tokenizer.save_pretrained(tmp_path)
    llama(len(tokenizer)).save_pretrained(tmp_path)
    pad_id = load_tokenizer(tmp_path).pad_token_id
    model = load_policy(tmp_path)
    assert pad_id == len(tokenizer)
    assert torch.isfinite(model(input_ids=torch.tensor([[1, pad_id]])).logits).all()


def test_a_tokenizer_keeps_its_hash_through_saving_and_use(base, tmp_path):
    tokenizer = load_tokenizer(base)
    before = tokenizer_hash(tokenizer)
    tokenizer(["a", "longer text"], padding=True, truncation=True, max_length=5)
    tokenizer.save_pretrained(tmp_path / "copy")
    assert tokenizer_hash(load_tokenizer(tmp_path / "copy")) == before


def test_another_template_or_another_vocabulary_is_another_hash():
    first, second = build_tokenizer("<|pad|>"), build_tokenizer("<|pad|>")
    second.chat_template = TEMPLATE.replace("User", "Human")
    third = build_tokenizer("<|pad|>", "<|more|>")
    assert len({tokenizer_hash(t) for t in (first, second, third)}) == 3


def test_lora_moves_few_parameters_and_starts_as_the_base(base):
    model = load_policy(base)
    before, everything = logits(model), sum(p.numel() for p in model.parameters())
    adapted = adapt(model, LoRA(rank=2))
    assert 0 < trainable_parameters(adapted) < everything / 5
    assert torch.equal(logits(adapted), before)


def disturb(model: PreTrainedModel) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)


@pytest.mark.parametrize("adaptation", [Full(), LoRA(rank=2)], ids=["full", "lora"])
def test_saved_and_loaded_logits_are_equal(base, tmp_path, adaptation):
    model = adapt(load_policy(base), adaptation)
    disturb(model)
    save_policy(model.eval(), load_tokenizer(base), tmp_path / "out")
    assert torch.equal(logits(load_policy(tmp_path / "out")), logits(model))


def test_an_adapter_folder_holds_the_adapter_alone(base, tmp_path):
    model = adapt(load_policy(base), LoRA(rank=2))
    save_policy(model, load_tokenizer(base), tmp_path / "out")
    weights = list((tmp_path / "out").glob("*.safetensors"))
    assert [path.name for path in weights] == ["adapter_model.safetensors"]
    assert weights[0].stat().st_size < 4 * trainable_parameters(model) + 8192


def test_an_adapter_refuses_a_base_that_changed(base, tmp_path):
    save_policy(adapt(load_policy(base), LoRA(rank=2)), load_tokenizer(base), tmp_path / "out")
    other = load_policy(base)
    disturb(other)
    save_policy(other, load_tokenizer(base), base)
    with pytest.raises(ValueError, match="an adapter only fits the weights it was trained on"):
        load_policy(tmp_path / "out")


def test_an_adapter_names_the_base_that_is_gone(base, tmp_path):
    save_policy(adapt(load_policy(base), LoRA(rank=2)), load_tokenizer(base), tmp_path / "out")
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"its base did not load: .*no such folder"):
        load_policy(tmp_path / "out")


def test_a_loaded_adapter_goes_on_training_or_is_merged(base, tmp_path):
    model = adapt(load_policy(base), LoRA(rank=2))
    disturb(model)
    save_policy(model, load_tokenizer(base), tmp_path / "out")
    again = adapt(load_policy(tmp_path / "out"), LoRA(rank=2))
    assert trainable_parameters(again) == trainable_parameters(model)
    merged = adapt(load_policy(tmp_path / "out"), Full())
    assert trainable_parameters(merged) == trainable_parameters(adapt(load_policy(base), Full()))
    assert torch.allclose(logits(merged), logits(model), atol=1e-5)


def test_an_adapter_with_another_rank_is_refused(base, tmp_path):
    save_policy(adapt(load_policy(base), LoRA(rank=2)), load_tokenizer(base), tmp_path / "out")
    with pytest.raises(ValueError, match=r"rank 4, .* has 2, "):
        adapt(load_policy(tmp_path / "out"), LoRA(rank=4))


def test_going_on_with_an_adapter_takes_the_new_dropout(base, tmp_path):
    first = adapt(load_policy(base), LoRA(rank=2, dropout=0.5))
    disturb(first)
    save_policy(first, load_tokenizer(base), tmp_path / "out")
    again = adapt(load_policy(tmp_path / "out"), LoRA(rank=2, dropout=0.0)).train()
    assert torch.equal(logits(again), logits(again))
    dropping = adapt(load_policy(tmp_path / "out"), LoRA(rank=2, dropout=0.5)).train()
    assert not torch.equal(logits(dropping), logits(dropping))


def test_an_adapter_on_other_modules_is_refused(base, tmp_path):
    save_policy(adapt(load_policy(base), LoRA(rank=2)), load_tokenizer(base), tmp_path / "out")
    with pytest.raises(ValueError, match=r"\['q_proj'\], the adapter to resume has"):
        adapt(load_policy(tmp_path / "out"), LoRA(rank=2, target_modules=["q_proj"]))


def test_the_hash_of_the_base_does_not_see_the_adapter(base):
    model = load_policy(base)
    before = weights_hash(model)
    adapted = adapt(model, LoRA(rank=2))
    disturb(adapted)
    assert weights_hash(adapted) == before


def opt(vocabulary: int) -> PreTrainedModel:
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "max_position_embeddings": 64}
    return OPTForCausalLM(OPTConfig(vocab_size=vocabulary, **sizes, **heads))


def falcon(vocabulary: int) -> PreTrainedModel:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return FalconForCausalLM(FalconConfig(vocab_size=vocabulary, **sizes))


@pytest.mark.parametrize("build", [llama, gpt2, opt, falcon])
def test_dropout_acts_in_training_mode_only(tmp_path, build):
    tokenizer = build_tokenizer("<|pad|>")
    save_policy(build(len(tokenizer)), tokenizer, tmp_path)
    still, dropping = load_policy(tmp_path), load_policy(tmp_path, dropout=0.2)
    assert torch.equal(logits(dropping), logits(still))
    assert torch.equal(logits(still.train()), logits(still.eval()))
    dropping.train()
    assert not torch.equal(logits(dropping), logits(dropping))


def test_residual_dropout_keeps_the_mean_of_what_a_block_adds(base):
    model = load_policy(base, dropout=0.2)
    mlp = model.get_submodule("model.layers.0.mlp")
    hidden_BLD = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected_BLD = mlp.eval()(hidden_BLD)
        mlp.train()
        draws = torch.stack([mlp(hidden_BLD) for _ in range(4000)])
    assert (draws == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert torch.allclose(draws.mean(0), expected_BLD, atol=0.02 * expected_BLD.abs().max())


def test_dropout_for_an_unknown_architecture_is_refused(tmp_path):

    tokenizer = build_tokenizer("<|pad|>")
    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=1, n_head=2)
    save_policy(BloomForCausalLM(config), tokenizer, tmp_path)
    with pytest.raises(ValueError, match=r"dropout is 0.2, but .* 'bloom'"):
        load_policy(tmp_path, dropout=0.2)


def test_what_is_not_there_is_one_line(tmp_path):
    for load in (load_policy, load_tokenizer):
        with pytest.raises(ValueError, match="no such folder") as caught:
            load(tmp_path / "nothing")
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no tokenizer there") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_weights_are_not_drawn_at_random(base):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="9 weights are missing"):
        load_policy(base)
