"""Responses come from exactly the model's distribution, whatever the batch."""

from collections import Counter

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stages.generation.config import SamplingConfig
from stages.generation.generate import Sampled, generate_responses, nucleus, sample_tokens

EOS, VOCABULARY = 1, 40


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<eos>": EOS} | {f"w{i}": i for i in range(2, VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()


def tiny(family: str, eos_bias: float = 0.0) -> PreTrainedModel:
    torch.manual_seed(0)
    ids = {"eos_token_id": EOS, "pad_token_id": 0, "bos_token_id": None, "vocab_size": VOCABULARY}
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model: PreTrainedModel
    match family:
        case "gpt2":
            model = GPT2LMHeadModel(
                GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=128, **ids)
            )
        case "llama":
            model = LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, **shape, **ids))
        case _:
            model = Qwen3ForCausalLM(
                Qwen3Config(num_key_value_heads=1, head_dim=16, **shape, **ids)
            )
    for parameter in model.parameters():
        parameter.data.mul_(4.0 if parameter.dim() > 1 else 1.0)  # far from uniform
    if eos_bias:
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(VOCABULARY))
        model.lm_head.bias.data[EOS] = eos_bias
    return model.eval()


def ragged_prompts(count: int, seed: int = 0, longest: int = 12) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(2, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[list[int]],
    **sampling: float,
) -> list[Sampled]:
    config = SamplingConfig.model_validate({"max_new_tokens": 16} | sampling)
    generator = torch.Generator().manual_seed(5)
    return generate_responses(model, tokenizer, prompts, config, generator=generator)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_greedy_equals_hf_generate(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model, prompts = tiny(family), ragged_prompts(9)
    ours = respond(model, tokenizer, prompts, temperature=0.0, batch_size=4)
    for prompt, response in zip(prompts, ours, strict=True):
        theirs = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=16)
        assert response.ids == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_responses_do_not_depend_on_the_batch(family: str, tokenizer: PreTrainedTokenizerFast):
    model, prompts = tiny(family, eos_bias=1.0), ragged_prompts(24)
    alone = respond(model, tokenizer, prompts, batch_size=1)
    assert {response.ended for response in alone} == {True, False}
    for batch_size in (3, 7, 24):
        assert respond(model, tokenizer, prompts, batch_size=batch_size) == alone


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_a_long_prompt_is_read_part_by_part(
    family: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = tiny(family), ragged_prompts(9)
    whole = respond(model, tokenizer, prompts, temperature=0.0)
    monkeypatch.setattr("stages.generation.kv_cache.PROMPT_PART", 5)
    widths: list[int] = []
    handle = model.get_input_embeddings().register_forward_hook(
        lambda _, given, __: widths.append(given[0].shape[1])
    )
    assert respond(model, tokenizer, prompts, temperature=0.0) == whole
    handle.remove()
    assert widths[:3] == [5, max(map(len, prompts)) - 5, 1]


def test_a_repeated_prompt_is_answered_as_if_read_each_time(tokenizer: PreTrainedTokenizerFast):
    model = tiny("llama", eos_bias=2.0)
    prompts = [prompt for prompt in ragged_prompts(3) for _ in range(4)]
    together = respond(model, tokenizer, prompts, batch_size=12)
    assert together == respond(model, tokenizer, prompts, batch_size=1)
    assert len({tuple(response.ids) for response in together[:4]}) > 1


def test_eos_is_last_where_a_response_ended_and_absent_elsewhere(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    for response in respond(tiny("llama", eos_bias=3.0), tokenizer, ragged_prompts(40)):
        assert response.ids.count(EOS) == int(response.ended)
        assert (response.ids[-1] == EOS) == response.ended
        assert response.ended or len(response.ids) == 16


def test_two_draws_with_one_seed_are_equal(tokenizer: PreTrainedTokenizerFast) -> None:
    model, prompts = tiny("llama"), ragged_prompts(5)
    assert respond(model, tokenizer, prompts) == respond(model, tokenizer, prompts)


def test_first_tokens_follow_the_models_distribution(tokenizer: PreTrainedTokenizerFast) -> None:
    model, prompt, count = tiny("llama"), [5, 9, 3], 4000
    drawn = respond(
        model, tokenizer, [prompt] * count, max_new_tokens=1, temperature=0.7, batch_size=4000
    )
    with torch.no_grad():
        probability_V = torch.softmax(model(torch.tensor([prompt])).logits[0, -1] / 0.7, -1)
    seen = Counter(response.ids[0] for response in drawn)
    for token, probability in enumerate(probability_V.tolist()):
        deviation = (count * probability * (1 - probability)) ** 0.5
        assert abs(seen[token] - count * probability) < 5 * deviation + 1


def test_sampling_inverts_the_cumulative_distribution_of_a_large_vocabulary() -> None:
    logits_BV = torch.randn(64, 1003, generator=torch.Generator().manual_seed(0)) * 3
    uniform_B = torch.rand(64, generator=torch.Generator().manual_seed(1))
    cumulative_BV = torch.softmax(logits_BV.double(), -1).cumsum(-1)
    expected_B = (cumulative_BV <= uniform_B.double()[:, None]).sum(-1)
    assert torch.equal(sample_tokens(logits_BV, uniform_B, temperature=1.0), expected_B)


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-24])
def test_a_token_of_probability_zero_is_never_drawn(uniform: float) -> None:
    logits_BV = torch.full((1, 200), float("-inf"))
    logits_BV[0, 70:130] = 0.0
    token = int(sample_tokens(logits_BV, torch.tensor([uniform]), temperature=1.0))
    assert 70 <= token < 130


def test_nucleus_keeps_the_smallest_set_that_reaches_top_p() -> None:
    probability_BV = torch.tensor([[0.1, 0.5, 0.15, 0.25]])
    assert nucleus(probability_BV, 0.7).tolist() == [[0.0, 0.5, 0.0, 0.25]]
    assert nucleus(probability_BV, 0.01).count_nonzero() == 1


def test_dropout_is_off_while_sampling_and_restored_after(tokenizer: PreTrainedTokenizerFast):
    model = tiny("gpt2").train()
    first = respond(model, tokenizer, ragged_prompts(4))
    assert model.training
    assert first == respond(model, tokenizer, ragged_prompts(4))


def test_an_empty_prompt_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        respond(tiny("llama"), tokenizer, [[3], []])
