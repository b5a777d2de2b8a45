"""Scores of responses do not depend on how they are batched, and come back in order."""

import pytest
import torch

from reward_models.model import RewardModel
from reward_models.records import Prompt
from stages.data.template import prompt_ids, response_ids
from stages.generation.score import score_responses, score_sequences
from tests.reward_models.tiny import tiny_base, tiny_tokenizer

PROMPTS = [Prompt("w1 w2"), Prompt("w3", context="w4 w5 w6 w7"), Prompt("w8 w9 w2"), Prompt("w1")]
RESPONSES = ["good w3", "bad", "", "w4 w5 w6 w7 w8 w9"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return RewardModel.from_base(tiny_base(tmp_path_factory.mktemp("base")), seed=0)


def by_hand(model: RewardModel, prompt: Prompt, response: str) -> float:
    tokenizer = tiny_tokenizer()
    ids = prompt_ids(tokenizer, prompt.prompt, prompt.context) + response_ids(tokenizer, response)
    ids_BL = torch.tensor([ids])
    places_BL = torch.arange(len(ids))[None]
    return float(model(ids_BL, torch.ones_like(ids_BL).bool(), places_BL).item())


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_each_score_is_that_of_its_own_prompt_and_response_in_any_batch(
    model: RewardModel, batch_size: int
) -> None:
    tokenizer = tiny_tokenizer()
    scores = score_responses(model, tokenizer, PROMPTS, RESPONSES, batch_size=batch_size)
    expected = [by_hand(model, *pair) for pair in zip(PROMPTS, RESPONSES, strict=True)]
    assert scores == pytest.approx(expected, abs=1e-5)


def test_the_context_is_read(model: RewardModel) -> None:
    bare = [Prompt("w3")]
    with_context, without = (
        score_responses(model, tiny_tokenizer(), prompts, ["bad"])
        for prompts in (PROMPTS[1:2], bare)
    )
    assert with_context != without


def test_a_response_that_did_not_end_is_scored_without_eos(model: RewardModel) -> None:
    ended, cut = score_responses(
        model, tiny_tokenizer(), [PROMPTS[0]] * 2, ["w5 w6"] * 2, ended=[True, False]
    )
    ids = prompt_ids(tiny_tokenizer(), "w1 w2") + response_ids(
        tiny_tokenizer(), "w5 w6", ended=False
    )
    assert cut == pytest.approx(score_sequences(model, [ids])[0], abs=1e-6)
    assert ended != cut


def test_as_many_responses_as_prompts_are_needed(model: RewardModel) -> None:
    with pytest.raises(ValueError, match="zip"):
        score_responses(model, tiny_tokenizer(), PROMPTS, RESPONSES[:2])


def test_scoring_keeps_no_gradient(model: RewardModel) -> None:
    score_responses(model, tiny_tokenizer(), PROMPTS, RESPONSES)
    assert all(parameter.grad is None for parameter in model.parameters())
