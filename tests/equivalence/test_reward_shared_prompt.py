"""Computing a prompt once for K responses gives the scores and gradients of K separate passes."""

import logging
import random

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    GemmaConfig,
    GemmaModel,
    GPT2Config,
    GPT2Model,
    GPTNeoXConfig,
    GPTNeoXModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    OPTConfig,
    OPTModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
)

from reward_models.backbone import without_dropout
from reward_models.model import RewardModel
from reward_models.model_card import RewardCard
from reward_models.ranking_loss import ranking_loss
from stages.reward.batches import RankedPrompt
from stages.reward.shared_prompt import Layout, SeparateRows, SharedPrompt, choose_layout

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GROUPED = SMALL | {"num_key_value_heads": 2, "head_dim": 8}
GPT2 = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
OPT = {"vocab_size": 60, "hidden_size": 32, "ffn_dim": 64, "word_embed_proj_dim": 16}
OPT |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}

FAMILIES = {
    "gpt2": (GPT2Config, GPT2Model, GPT2),
    "llama": (LlamaConfig, LlamaModel, SMALL | {"num_key_value_heads": 2}),
    "qwen2": (Qwen2Config, Qwen2Model, SMALL | {"num_key_value_heads": 2}),
    "qwen3": (Qwen3Config, Qwen3Model, GROUPED),
    "gpt_neox": (GPTNeoXConfig, GPTNeoXModel, SMALL),
    "opt": (OPTConfig, OPTModel, OPT),
    "gemma": (GemmaConfig, GemmaModel, GROUPED),
    "gemma3": (Gemma3TextConfig, Gemma3TextModel, GROUPED | {"sliding_window": 128}),
}


def tiny_backbone(family: str, attention: str = "sdpa") -> PreTrainedModel:
    config_type, model_type, settings = FAMILIES[family]
    config = without_dropout(config_type(**settings, attn_implementation=attention))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = model_type(config)
        for parameter in model.parameters():  # as sharp as a trained one
            if parameter.dim() > 1:
                parameter.data.normal_(0, 0.3)
    return model


def reward_model(backbone: PreTrainedModel) -> RewardModel:
    model = RewardModel(backbone, RewardCard(base="tiny", base_hash=""))
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    return model.eval()


def elements(count: int = 5) -> list[RankedPrompt]:
    rng = random.Random(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(2, 60) for _ in range(length))

    made = []
    for number in range(count):
        responses = tuple((*ids(rng.randrange(0, 7)), 1) for _ in range(rng.randint(2, 5)))
        ranks = (tuple(rng.randint(1, 3) for _ in responses),)
        names = ("a",) * len(responses)
        made.append(
            RankedPrompt(
                f"t{number}", f"p{number}", ids(rng.randint(1, 12)), responses, names, ("x",), ranks
            )
        )
    return made


def loss_and_gradient(model: RewardModel, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    batch = layout.collate(elements())
    model.zero_grad()
    loss = ranking_loss(layout.scores(model, batch), batch["rank_BAK"], num_elements=1)
    loss.backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.detach(), torch.cat(grads)


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_scores_equal_separate_passes(family: str) -> None:
    model = reward_model(tiny_backbone(family))
    batch = SharedPrompt().collate(elements())
    reward_BK = SharedPrompt().scores(model, batch)
    for row, element in enumerate(elements()):
        for index, response in enumerate(element.responses):
            ids_BL = torch.tensor([element.prompt + response])
            mask_BL = torch.ones_like(ids_BL, dtype=torch.bool)
            alone = model(ids_BL, mask_BL, torch.arange(ids_BL.shape[1])[None])
            assert torch.allclose(reward_BK[row, index], alone[0], atol=1e-5), (row, index)


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_gradients_equal_separate_gradients(family: str) -> None:
    model = reward_model(tiny_backbone(family)).double()
    shared, shared_gradient = loss_and_gradient(model, SharedPrompt())
    separate, separate_gradient = loss_and_gradient(model, SeparateRows())
    assert torch.allclose(shared, separate, atol=1e-6)
    scale = separate_gradient.abs().max()
    assert (shared_gradient - separate_gradient).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("layout", [SharedPrompt(), SeparateRows()])
def test_a_score_does_not_depend_on_the_other_prompts_of_the_batch(layout: Layout) -> None:
    model = reward_model(tiny_backbone("llama"))
    together = layout.scores(model, layout.collate(elements()))
    for row, element in enumerate(elements()):
        alone = layout.scores(model, layout.collate([element]))[0]
        assert torch.allclose(alone, together[row, : len(element.responses)], atol=1e-5)


def test_an_empty_unended_response_is_scored_at_the_prompt_s_end_in_both_layouts() -> None:
    model = reward_model(tiny_backbone("gpt2"))
    element = RankedPrompt("t", "p", (5, 6, 7), ((8, 1), ()), ("a", "a"), ("x",), ((1, 2),))
    shared = SharedPrompt().scores(model, SharedPrompt().collate([element]))
    separate = SeparateRows().scores(model, SeparateRows().collate([element]))
    assert torch.allclose(shared, separate, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_can_share_do(family: str, caplog: pytest.LogCaptureFixture) -> None:
    assert choose_layout(reward_model(tiny_backbone(family)), elements()) == SharedPrompt()
    assert not caplog.records


def test_a_window_shorter_than_the_row_falls_back_with_a_warning(caplog: pytest.LogCaptureFixture):
    config = MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=8)
    model = reward_model(MistralModel(config))
    with caplog.at_level(logging.WARNING):
        assert choose_layout(model, elements()) == SeparateRows()
    assert len(caplog.records) == 1
    assert "MistralModel cannot share a prompt" in caplog.text
    assert "sliding_window of 8" in caplog.text


def test_attention_of_another_kind_falls_back_with_a_warning(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert (
            choose_layout(reward_model(tiny_backbone("llama", "eager")), elements())
            == SeparateRows()
        )
    assert "LlamaModel cannot share a prompt" in caplog.text
    assert "its attention is 'eager'; expected sdpa" in caplog.text


def test_pieces_that_do_not_arrive_at_attention_are_noticed(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reward_models.packed_attention.ATTENTION", "sdpa")
    with caplog.at_level(logging.WARNING):
        assert choose_layout(reward_model(tiny_backbone("llama")), elements()) == SeparateRows()
    assert "scores differ by" in caplog.text


def test_positions_from_the_mask_fall_back_with_a_warning(caplog: pytest.LogCaptureFixture):
    model = reward_model(
        BloomModel(BloomConfig(vocab_size=60, hidden_size=32, n_layer=2, n_head=4))
    )
    with caplog.at_level(logging.WARNING):
        assert choose_layout(model, elements()) == SeparateRows()
    assert "BloomModel cannot share a prompt" in caplog.text


def test_a_prompt_shared_by_k_responses_is_computed_once() -> None:
    [element] = elements(1)
    shared = SharedPrompt().collate([element])["ids_1N"].numel()
    assert shared == len(element.prompt) + sum(map(len, element.responses))


def one_by_one(model: RewardModel, element: RankedPrompt) -> torch.Tensor:
    """score_K from a pass of its own for each response, without any padding."""
    alone = []
    for response in element.responses:
        ids_BL = torch.tensor([element.prompt + response])
        mask_BL = torch.ones_like(ids_BL, dtype=torch.bool)
        alone.append(model(ids_BL, mask_BL, torch.arange(ids_BL.shape[1])[None])[0])
    return torch.stack(alone)


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_scores_equal_separate_passes_in_batches_of_any_size(family: str) -> None:
    model = reward_model(tiny_backbone(family))
    everything = elements(6)
    expected = [one_by_one(model, element) for element in everything]
    for batch_size in (1, 2, 3, 6):
        for start in range(0, len(everything), batch_size):
            part = everything[start : start + batch_size]
            batch = SharedPrompt().collate(part)
            reward_BK = SharedPrompt().scores(model, batch)
            for row, score_K in enumerate(expected[start : start + batch_size]):
                found_K = reward_BK[row, : len(score_K)]
                assert torch.allclose(found_K, score_K, atol=1e-5), (batch_size, start + row)
