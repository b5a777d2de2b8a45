"""Before PPO the reward model must tell chosen from rejected, as it is loaded here."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reward_models.model import RewardModel
from reward_models.records import Ranking, RankingTask
from stages.generation.score import score_sequences
from stages.models import load_tokenizer
from stages.progress import Step
from stages.reward.batches import RankedPrompt, split_rankings
from stages.reward.config import RewardConfig
from stages.reward.held_out import check_reward_model
from tests.reward_models.tiny import tiny_base, tiny_rankings, tiny_tasks
from tests.stages.ppo.tiny_ppo import tiny_config, tiny_world, train


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_world(tmp_path_factory.mktemp("world"))


def held_out(base: Path, tasks: Sequence[RankingTask]) -> list[RankedPrompt]:
    rng = random.Random(1)
    rankings: list[Ranking] = tiny_rankings(list(tasks), ["ann"], rng, noise=0.5)
    config = RewardConfig(held_out=0.9)
    return split_rankings(config, load_tokenizer(base), tasks, rankings, seed=0).held_out


def ranked_by(
    model: RewardModel, elements: Sequence[RankedPrompt], sign: int
) -> list[RankedPrompt]:
    """The same prompts, ranked by the model's own scores; sign -1: the wrong way round."""
    ranked = []
    for one in elements:
        scores = score_sequences(model, [[*one.prompt, *response] for response in one.responses])
        order = sorted(scores, key=lambda score: -sign * score)
        ranks = tuple(order.index(score) + 1 for score in scores)
        ranked.append(replace(one, ranks=(ranks,), annotators=("ann",)))
    return ranked


def test_a_model_that_orders_held_out_pairs_the_wrong_way_round_stops_ppo(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    model = RewardModel.load(world[1])
    elements = held_out(world[0], tiny_tasks(40, random.Random(0)))
    assert check_reward_model(model, ranked_by(model, elements, 1)) == 1.0
    backwards = ranked_by(model, elements, -1)
    with pytest.raises(ValueError, match=r"orders 0.0% .* of \d+ held-out pairs .*head was lost"):
        train(world, tmp_path, tiny_config(), held_out=backwards)


def test_a_model_that_may_be_chance_is_warned_of(
    world: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    model = RewardModel.load(world[1])
    elements = held_out(world[0], tiny_tasks(40, random.Random(0)))
    mixed = [*ranked_by(model, elements[::2], 1), *ranked_by(model, elements[1::2], -1)]
    share = check_reward_model(model, mixed)
    assert share is not None
    assert 0.3 < share < 0.7
    assert "which may be chance: collect more rankings" in caplog.text


def test_a_head_that_was_lost_on_the_way_is_warned_of(
    world: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    model = RewardModel.load(world[1])
    elements = ranked_by(model, held_out(world[0], tiny_tasks(40, random.Random(0))), 1)
    with torch.no_grad():
        model.head.weight.zero_()
    assert check_reward_model(model, elements) == 0.5
    assert "which may be chance" in caplog.text


def test_no_more_prompts_are_scored_than_tell_the_model_from_chance(world: tuple[Path, Path]):
    model = RewardModel.load(world[1])
    elements = held_out(world[0], tiny_tasks(120, random.Random(1)))
    steps: list[Step] = []
    assert check_reward_model(model, ranked_by(model, elements, 1), steps.append) == 1.0
    assert [(step.done, step.total) for step in steps] == [(40, len(elements))]
    with pytest.raises(ValueError, match=r"orders 0\.0%"):
        check_reward_model(model, ranked_by(model, elements, -1), steps.append)
    assert [step.done for step in steps] == [40, 40]


def test_few_rankings_stop_nobody(world: tuple[Path, Path]) -> None:
    model = RewardModel.load(world[1])
    elements = ranked_by(model, held_out(world[0], tiny_tasks(6, random.Random(0))), -1)
    assert check_reward_model(model, elements) == 0.0
    assert check_reward_model(model, []) is None


def test_the_prompts_are_those_that_training_held_out(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    elements = held_out(base, tiny_tasks(40, random.Random(0)))
    assert len(elements) == pytest.approx(36, abs=3)
