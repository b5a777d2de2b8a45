"""Annotators left out of training are asked whether they agree with the model."""

import json
import random
from pathlib import Path

import pytest

from reward_models.records import Ranking
from stages.progress import Step, silent
from stages.reward.batches import ranked_by, ranked_prompts, split_rankings
from stages.reward.config import RewardConfig
from stages.reward.folds import (
    ANNOTATOR_FOLDS,
    PROMPT_FOLDS,
    accuracy_on_unseen_annotators,
    deal_into_folds,
    write_folds,
)
from tests.reward_models.tiny import tiny_base, tiny_rankings, tiny_tasks, tiny_tokenizer


def test_groups_hold_every_annotator_once_and_differ_by_one_at_most() -> None:
    names = {f"a{number}" for number in range(13)}
    groups = deal_into_folds(names, 5, "seed", "annotators")
    assert sorted(name for group in groups for name in group) == sorted(names)
    assert {len(group) for group in groups} == {2, 3}


@pytest.mark.parametrize("folds", [1, 4])
def test_more_folds_than_annotators_or_fewer_than_two_are_refused(folds: int) -> None:
    with pytest.raises(ValueError, match=f"{folds} folds of 3 annotators"):
        deal_into_folds({"a", "b", "c"}, folds, "seed", "annotators")


def test_what_others_ranked_is_not_learnt_from() -> None:
    rng = random.Random(0)
    tasks = tiny_tasks(10, rng)
    rankings = tiny_rankings(tasks, ["ann"], rng) + tiny_rankings(tasks[:4], ["ben"], rng)
    elements, _ = ranked_prompts(tiny_tokenizer(), tasks, rankings, max_tokens=64)
    restricted = ranked_by(elements, {"ben"})
    assert {element.task for element in restricted} <= {task.id for task in tasks[:4]}
    assert {name for element in restricted for name in element.annotators} == {"ben"}


def test_annotators_of_another_taste_agree_less_with_a_model_that_never_saw_them(tmp_path: Path):
    rng = random.Random(0)
    tasks = tiny_tasks(150, rng)
    liked = tiny_rankings(tasks, ["ann"], rng)
    contrary = [
        Ranking(one.task, "zoe", one.kind, {name: 6 - rank for name, rank in one.ranks.items()})
        for one in liked
    ]
    config = RewardConfig(learning_rate=1e-2, prompts_per_batch=8, held_out=0.2, annotator_folds=2)
    result = accuracy_on_unseen_annotators(
        config,
        split_rankings(config, tiny_tokenizer(), tasks, liked + contrary, 0),
        base=tiny_base(tmp_path / "base"),
        work=tmp_path / "work",
        seed=0,
        report=silent,
    )
    assert result["in_group"]["value"] > 0.7
    assert result["held_out_group"]["value"] < 0.3
    assert result["groups"] in ([["ann"], ["zoe"]], [["zoe"], ["ann"]])


def test_the_files_of_folds_are_whole_and_what_was_trained_for_it_is_gone(tmp_path: Path) -> None:
    rng = random.Random(0)
    tasks = tiny_tasks(12, rng)
    out = tmp_path / "reward"
    out.mkdir()
    steps: list[Step] = []
    write_folds(
        RewardConfig(prompts_per_batch=8, held_out=0.3, annotator_folds=2, prompt_folds=3),
        base=tiny_base(tmp_path / "base"),
        tasks=tasks,
        rankings=tiny_rankings(tasks, ["ann", "ben"], rng),
        out=out,
        seed=0,
        report=steps.append,
    )
    assert not any(step.total for step in steps)  # the count is that of the reward model
    words = [step.doing for step in steps if "step" in step.doing]
    assert [text.partition(":")[0] for text in words] == [
        *(f"annotator fold {number} of 2" for number in (1, 2)),
        *(f"prompt fold {number} of 3" for number in (1, 2, 3)),
    ]  # a batch a fold
    assert not any(step.metrics for step in steps)
    result = json.loads((out / ANNOTATOR_FOLDS).read_text())
    assert result["in_group"]["n_pairs"] == result["held_out_group"]["n_pairs"] > 0
    assert json.loads((out / PROMPT_FOLDS).read_text())["pair_accuracy"]["n_pairs"] > 0
    assert sorted(path.name for path in out.iterdir()) == [ANNOTATOR_FOLDS, PROMPT_FOLDS]
