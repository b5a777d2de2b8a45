"""A reward model may learn from judges, and is scored on what people ranked."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from reward_models.records import Ranking, RankingTask, Use
from stages.progress import silent
from stages.reward.batches import SplitRankings, split_rankings
from stages.reward.config import RewardConfig
from stages.reward.train import train_reward
from tests.reward_models.tiny import tiny_base, tiny_rankings, tiny_tasks, tiny_tokenizer

CONFIG = RewardConfig(held_out=0.2, prompts_per_batch=8, scale="none")


def labels(num_people: int) -> tuple[list[RankingTask], list[Ranking]]:
    """Forty tasks ranked by a judge, the first of them by a person too."""
    rng = random.Random(0)
    tasks = tiny_tasks(40, rng)
    people = tiny_rankings(tasks[:num_people], ["ann"], rng)
    judges = [
        replace(one, annotator="judge:m/1", kind="judge")
        for one in tiny_rankings(tasks, ["x"], rng)
    ]
    return tasks, people + judges


def names(split: SplitRankings, part: str) -> set[str]:
    return {name for element in getattr(split, part) for name in element.annotators}


@pytest.mark.parametrize(
    ("use", "expected"),
    [("people", {"ann"}), ("judges", {"judge:m/1"}), ("both", {"ann", "judge:m/1"})],
)
def test_what_is_held_out_is_the_same_prompts_by_people_alone(use: Use, expected: set[str]) -> None:
    tasks, rankings = labels(30)
    split = split_rankings(CONFIG, tiny_tokenizer(), tasks, rankings, 0, use)
    assert names(split, "train") == expected
    assert names(split, "held_out") == {"ann"}
    alone = [one for one in rankings if one.kind != "judge"]
    assert split.held_out == split_rankings(CONFIG, tiny_tokenizer(), tasks, alone, 0).held_out
    held = {element.conversation for element in split.held_out}
    assert not held & {element.conversation for element in split.train}


def test_without_people_nothing_is_held_out_and_without_judges_nothing_is_learnt_from_them() -> (
    None
):
    tasks, rankings = labels(0)
    split = split_rankings(CONFIG, tiny_tokenizer(), tasks, rankings, 0, "judges")
    assert (len(split.train), split.held_out) == (len(split.elements), [])
    with pytest.raises(ValueError, match="by people"):
        split_rankings(CONFIG, tiny_tokenizer(), tasks, rankings, 0, "people")


def test_the_result_names_the_mix(tmp_path: Path) -> None:
    tasks, rankings = labels(30)
    train_reward(
        CONFIG,
        base=tiny_base(tmp_path / "base"),
        tasks=tasks,
        rankings=rankings,
        demonstrations=[],
        out=tmp_path / "out",
        seed=0,
        report=silent,
        use="judges",
    )
    results = json.loads((tmp_path / "out/held_out.json").read_text())
    assert (results["mix"], results["label_kinds"]) == ({"judge": 40}, ["judge"])
    assert results["n_pairs"] > 0
