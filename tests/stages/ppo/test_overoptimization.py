"""The second opinion during PPO: asked of the same prompts each time, and without any influence."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.steps.ppo import WinRate, gold_reward, toxicity
from reward_models.model import RewardModel
from reward_models.records import Prompt
from stages.generation.score import score_responses
from stages.models import load_tokenizer, tokenizer_hash
from stages.ppo.config import Overoptimization
from stages.ppo.overoptimization import GoldReward
from stages.progress import Step, silent
from tests.stages.ppo.test_resume import assert_same_result
from tests.stages.ppo.tiny_ppo import PROMPTS, tiny_config, tiny_world, train

RULE = {"gold_reward": "a test", "every": 2, "num_prompts": 6}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_world(tmp_path_factory.mktemp("world"))


def test_the_gold_reward_scores_first_regularly_and_last_and_changes_nothing(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    calls: list[tuple[list[Prompt], list[str], list[bool]]] = []

    def judge(
        prompts: Sequence[Prompt], responses: Sequence[str], ended: Sequence[bool]
    ) -> list[float]:
        calls.append((list(prompts), list(responses), list(ended)))
        return [float(len(response.split())) for response in responses]

    config = tiny_config(overoptimization=RULE, episodes=40, learning_rate=0.01)
    steps: list[Step] = []
    train(world, tmp_path / "marked", config, steps.append, gold=GoldReward(judge, PROMPTS[:6]))
    result = [step for step in steps if "ppo/gold_score" in step.metrics]
    assert [step.done for step in result] == [0, 2, 4, 5]
    assert all(prompts == PROMPTS[:6] for prompts, _, _ in calls)
    assert result[0].metrics["ppo/gold_kl_nats"] == 0.0
    for step, (_, responses, _) in zip(result, calls, strict=True):
        mean = sum(len(text.split()) for text in responses) / 6
        assert step.metrics["ppo/gold_score"] == pytest.approx(mean)
    train(world, tmp_path / "plain", tiny_config(episodes=40, learning_rate=0.01))
    assert_same_result(tmp_path / "marked", tmp_path / "plain")


def test_another_reward_model_scores_in_its_own_tokens(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    reward, tokenizer = RewardModel.load(world[1]), load_tokenizer(world[0])
    reward.record_training(tokenizer_hash(tokenizer), {"simulated"})
    reward.save(tmp_path / "second", tokenizer)
    rule = Overoptimization(gold_reward=str(tmp_path / "second"), num_prompts=4)
    gold = gold_reward(rule, PROMPTS, world[0], tiny_config().sampling, 0)
    assert gold is not None
    assert gold.prompts == PROMPTS[:4]
    responses, ended = ["w1 w2", "w3", "w4 w5 w6", "w1"], [True, False, True, True]
    result = gold.judge(gold.prompts, responses, ended)
    assert result == score_responses(reward, tokenizer, PROMPTS[:4], responses, ended=ended)
    assert len(set(result)) == 4
    steps: list[Step] = []
    config = tiny_config(overoptimization=RULE, episodes=16)
    train(world, tmp_path / "out", config, steps.append, gold=gold)
    metrics = [step.metrics for step in steps if "ppo/gold_score" in step.metrics]
    assert len(metrics) == 2
    assert all(
        0 <= step[name] <= 1 for step in metrics for name in ("ppo/win_rate", "ppo/toxicity")
    )


def test_a_gold_rule_without_anybody_to_ask_is_refused(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="overoptimization is set, but there is no input"):
        train(world, tmp_path, tiny_config(overoptimization=RULE), silent)
    assert gold_reward(None, PROMPTS, world[0], tiny_config().sampling, 0) is None


def test_wins_are_against_the_start_policys_own_answers(world: tuple[Path, Path]) -> None:
    calls: list[list[str]] = []

    def by_length(_: Sequence[Prompt], responses: Sequence[str], __: Sequence[bool]) -> list[float]:
        calls.append(list(responses))
        return [float(len(response)) for response in responses]

    sampling = tiny_config().sampling
    wins = WinRate(by_length, PROMPTS[:3], world[0], sampling, 0)
    assert wins(PROMPTS[:1], ["w" * 900], [True]) == [1.0]
    own = calls[-1]
    assert wins(PROMPTS[:3], own, [True] * 3) == [0.5] * 3
    assert wins(PROMPTS[1:3], ["", ""], [True] * 2) == [0.0 if text else 0.5 for text in own[1:]]
    assert len(calls) == 4  # the start policy answers once


def test_toxicity_is_of_the_answers_alone() -> None:
    rude, kind = toxicity(PROMPTS[:2], ["You idiot.", "Thank you."], [True, True])
    assert rude > 0.9 > 0.1 > kind
