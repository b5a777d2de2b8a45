"""Outputs of the models for a response are the same alone, padded, packed, and in any batch."""

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from reward_models.model import RewardModel
from reward_models.model_card import RewardCard
from reward_models.packed_attention import enable_packing
from stages.generation.generate import Sampled
from stages.ppo.forward import response_logits, response_scores, response_values
from stages.ppo.rollout import Episodes, by_length, lay_out, shuffled

VOCABULARY = 40
BOTH = pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
CPU = torch.device("cpu")


def tiny(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model: PreTrainedModel
    match family:
        case "gpt2":
            model = GPT2LMHeadModel(
                GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=64)
            )
        case "llama":
            config = LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=1, **shape)
            model = LlamaForCausalLM(config)
        case _:
            config = Qwen3Config(vocab_size=VOCABULARY, num_key_value_heads=1, head_dim=16, **shape)
            model = Qwen3ForCausalLM(config)
    for parameter in model.parameters():
        parameter.data.mul_(4.0 if parameter.dim() > 1 else 1.0)  # far from uniform
    enable_packing(model)
    return model.eval()


def tiny_reward(family: str) -> RewardModel:
    torch.manual_seed(1)
    return RewardModel(tiny(family).base_model, RewardCard(base="", base_hash="")).eval()


def ragged() -> tuple[list[list[int]], list[Sampled]]:
    generator = torch.Generator().manual_seed(0)

    def words(count: int) -> list[int]:
        return torch.randint(0, VOCABULARY, (count,), generator=generator).tolist()

    prompts = [words(n) for n in (1, 9, 4, 12, 3, 7)]
    return prompts, [Sampled(words(n), ended=n % 2 == 0) for n in (8, 1, 3, 2, 6, 5)]


@pytest.fixture
def episodes() -> Episodes:
    return Episodes.build(*ragged(), CPU)


def read_alone(model: PreTrainedModel, prompt: list[int], response: list[int]) -> Tensor:
    """The plain way: one sequence, no padding, logits everywhere."""
    logits_LV: Tensor = model(torch.tensor([prompt + response])).logits[0]
    return logits_LV[len(prompt) - 1 : -1]


@BOTH
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_logits_of_a_batch_equal_those_of_each_sequence_alone(
    family: str, episodes: Episodes, packed: bool
) -> None:
    model, (prompts, responses) = tiny(family), ragged()
    alone = [read_alone(model, p, r.ids) for p, r in zip(prompts, responses, strict=True)]
    torch.testing.assert_close(
        response_logits(model, lay_out(episodes, packed=packed)),
        torch.cat(alone),
        atol=1e-5,
        rtol=1e-5,
    )


@BOTH
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_values_and_scores_of_a_batch_equal_those_of_each_sequence_alone(
    family: str, episodes: Episodes, packed: bool
) -> None:
    model, (prompts, responses) = tiny_reward(family), ragged()
    layout = lay_out(episodes, packed=packed)
    value_N, score_B = response_values(model, layout), response_scores(model, layout)
    values, scores = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        ids_BL = torch.tensor([prompt + response.ids])
        hidden_LD = model.backbone(ids_BL).last_hidden_state[0]
        said_L = (hidden_LD @ model.head.weight[0]) + model.bias
        values.append(said_L[len(prompt) - 1 : -1])
        scores.append(said_L[-1])
    torch.testing.assert_close(value_N, torch.cat(values), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(score_B, torch.stack(scores), atol=1e-5, rtol=1e-5)


@BOTH
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_gradients_of_a_batch_are_finite_and_equal_those_of_sequences_alone(
    family: str, episodes: Episodes, packed: bool
) -> None:
    model, (prompts, responses) = tiny(family), ragged()
    response_logits(model, lay_out(episodes, packed=packed)).log_softmax(-1)[:, 5].sum().backward()
    together = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for prompt, response in zip(prompts, responses, strict=True):
        read_alone(model, prompt, response.ids).log_softmax(-1)[:, 5].sum().backward()
    for outputs, parameter in zip(together, model.parameters(), strict=True):
        torch.testing.assert_close(outputs, parameter.grad, atol=2e-4, rtol=1e-4)


@BOTH
def test_a_part_of_the_episodes_has_its_outputs_in_the_whole(episodes: Episodes, packed: bool):
    model, rows = tiny("llama"), torch.tensor([4, 1])
    whole_NV, counts = (
        response_logits(model, lay_out(episodes, packed=packed)),
        episodes.response_BT.sum(-1).tolist(),
    )
    of_row = whole_NV.split(counts)
    part_NV = response_logits(model, lay_out(episodes.take(rows), packed=packed))
    torch.testing.assert_close(part_NV, torch.cat([of_row[4], of_row[1]]), atol=1e-5, rtol=1e-5)


def test_a_part_has_no_column_that_none_of_its_rows_uses(episodes: Episodes) -> None:
    part = episodes.take(torch.tensor([2, 4]))
    assert part.ids_BL.shape == (2, 9)
    assert part.response_BT.shape == (2, 6)


def test_batches_by_length_hold_every_row_once_and_similar_lengths(episodes: Episodes) -> None:
    rows = torch.tensor([5, 3, 0, 1])
    parts = [part.tolist() for part in by_length(episodes, rows, 2)]
    assert sorted(row for part in parts for row in part) == [0, 1, 3, 5]
    lengths = [int(episodes.mask_BL[part].sum(-1).max()) for part in parts]
    assert lengths == sorted(lengths)


def test_response_tokens_are_the_responses(episodes: Episodes) -> None:
    _, responses = ragged()
    outputs = episodes.response_tokens()[episodes.response_BT].tolist()
    assert outputs == [token for response in responses for token in response.ids]


def shared(sharing: int) -> Episodes:
    """Two prompts with three ragged responses each."""
    prompts, responses = ragged()
    three_each = [prompts[3]] * 3 + [prompts[2]] * 3
    return Episodes.build(three_each, responses, CPU, sharing=sharing)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_a_prompt_computed_once_for_its_responses_gives_the_numbers_of_separate_rows(family: str):
    policy, reward = tiny(family), tiny_reward(family)
    apart, together = lay_out(shared(1)), lay_out(shared(3), packed=True)
    assert together.ids_BL.shape == (1, 12 + 4 + sum(len(r.ids) for r in ragged()[1]))
    for read, model in (
        (response_logits, policy),
        (response_values, reward),
        (response_scores, reward),
    ):
        expected, outputs = read(model, apart), read(model, together)
        torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_gradients_through_a_shared_prompt_are_those_of_separate_rows(family: str) -> None:
    model, gradients = tiny(family), []
    for sharing in (1, 3):
        model.zero_grad()
        logits_NV = response_logits(model, lay_out(shared(sharing), packed=True))
        logits_NV.log_softmax(-1)[:, 5].sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for apart, together in zip(*gradients, strict=True):
        torch.testing.assert_close(together, apart, atol=2e-4, rtol=1e-4)


def test_batches_keep_together_what_shares_a_prompt() -> None:
    episodes = shared(3)
    order = shuffled(6, 3, torch.Generator().manual_seed(1)).tolist()
    assert sorted(order) == list(range(6))
    assert order[0] % 3 == 0
    assert order[:3] == list(range(order[0], order[0] + 3))
    parts = [part.tolist() for part in by_length(episodes, torch.tensor(order), 3)]
    assert sorted(parts) == [[0, 1, 2], [3, 4, 5]]
