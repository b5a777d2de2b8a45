"""The optional scale of a reward model's scores, beside the bias that is always there."""

import json
import random
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest

from reward_models.model import RewardModel
from reward_models.records import Prompt
from stages.generation.score import score_responses
from stages.models import load_tokenizer
from stages.reward.config import RewardConfig
from stages.reward.train import train_reward
from tests.reward_models.tiny import tiny_base, tiny_demonstrations, tiny_rankings, tiny_tasks

DEMONSTRATIONS = tiny_demonstrations(10, random.Random(1))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


def trained(base: Path, out: Path, scale: str, count: int = len(DEMONSTRATIONS)) -> dict[str, Any]:
    tasks = tiny_tasks(30, random.Random(0))
    train_reward(
        RewardConfig.model_validate(
            {"prompts_per_batch": 8, "learning_rate": 1e-2, "held_out": 0.3, "scale": scale}
        ),
        base=base,
        tasks=tasks,
        rankings=tiny_rankings(tasks, ["ann"], random.Random(0)),
        demonstrations=DEMONSTRATIONS[:count],
        out=out,
        seed=0,
    )
    results: dict[str, Any] = json.loads((out / "held_out.json").read_text())
    return results


def scores(out: Path) -> list[float]:
    model, tokenizer = RewardModel.load(out / "model"), load_tokenizer(out / "model")
    prompts = [Prompt(one.prompt) for one in DEMONSTRATIONS]
    return score_responses(model, tokenizer, prompts, [one.response for one in DEMONSTRATIONS])


def test_scores_of_demonstrations_get_mean_0_and_variance_1_as_the_card_records(
    base: Path, tmp_path: Path
) -> None:
    plain = trained(base, tmp_path / "plain", "none")
    scaled = trained(base, tmp_path / "scaled", "demonstrations")
    as_learnt, results = scores(tmp_path / "plain"), scores(tmp_path / "scaled")
    assert fmean(results) == pytest.approx(0.0, abs=1e-5)
    assert pstdev(results) == pytest.approx(1.0, rel=1e-4)
    divided_by = RewardModel.load(tmp_path / "scaled/model").card.divided_by
    assert divided_by == scaled["divided_by"] == pytest.approx(pstdev(as_learnt), rel=1e-4)
    assert [x * divided_by for x in results] == pytest.approx(as_learnt, abs=1e-4)
    assert (plain["divided_by"], plain["scale"]) == (1.0, "none")


def test_held_out_scores_can_set_the_scale_and_the_order_of_responses_stays(
    base: Path, tmp_path: Path
) -> None:
    plain = trained(base, tmp_path / "plain", "none")
    scaled = trained(base, tmp_path / "scaled", "held_out")
    assert scaled["divided_by"] != pytest.approx(1.0, rel=1e-3)
    for name in ("pair_accuracy", "by_confidence", "calibration_error"):  # as it was learnt
        assert scaled[name] == plain[name], name
    order = sorted(range(len(DEMONSTRATIONS)), key=scores(tmp_path / "plain").__getitem__)
    assert order == sorted(range(len(DEMONSTRATIONS)), key=scores(tmp_path / "scaled").__getitem__)


def test_a_scale_without_anything_to_take_it_from_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scale is 'demonstrations', but there are none"):
        trained(base, tmp_path, "demonstrations", count=0)
    with pytest.raises(ValueError, match="scale is 'held_out' but held_out is 0"):
        RewardConfig(scale="held_out", held_out=0.0)
    with pytest.raises(ValueError, match="there is no scale to them"):
        RewardModel.from_base(base, 0).set_scale(0.0)
