"""An experiment learns from people or judges as its config says, and waits for people alone."""

import random
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labeling_ui.store.store import Store
from pipeline.config.labeling import HumanAnnotators
from pipeline.config.loading import validated
from pipeline.labeling.choosing import LEAST, chooser
from pipeline.runs.failures import PeopleNeeded
from pipeline.steps.label import ranked_by_people
from reward_models.model import RewardModel
from reward_models.records import Ranking, RankingTask
from stages.progress import silent
from tests.reward_models.tiny import tiny_base, tiny_rankings, tiny_tasks, tiny_tokenizer


def tasks_and_people(number: int) -> tuple[list[RankingTask], list[Ranking]]:
    rng = random.Random(0)
    tasks = tiny_tasks(number, rng)
    people = [replace(one, kind="human") for one in tiny_rankings(tasks, ["ann"], rng)]
    return tasks, people


def settings(**more: Any) -> HumanAnnotators:
    return validated(HumanAnnotators, values={"kind": "human", "wait": False, **more})


@pytest.mark.parametrize(
    ("use", "kinds"),
    [("people", {"human"}), ("judges", {"human", "judge"}), ("both", {"human", "judge"})],
)
def test_judges_come_with_people_where_the_config_uses_them(
    tmp_path: Path, use: str, kinds: set[str]
) -> None:
    tasks, people = tasks_and_people(4)
    judges = [replace(one, annotator="judge:m/1", kind="judge") for one in people]
    with closing(Store(tmp_path / "rankings.sqlite")) as store:
        store.add_tasks(tasks)
        store.submit_all([*people, *judges])
    rankings = ranked_by_people(settings(use=use), tasks, tmp_path, silent)
    assert {ranking.kind for ranking in rankings} == kinds


def test_judges_alone_are_not_people(tmp_path: Path) -> None:
    tasks, people = tasks_and_people(4)
    with closing(Store(tmp_path / "rankings.sqlite")) as store:
        store.add_tasks(tasks)
        store.submit_all([replace(one, annotator="judge:m/1", kind="judge") for one in people])
    with pytest.raises(PeopleNeeded, match="0 of 4 tasks are ranked"):
        ranked_by_people(settings(use="both"), tasks, tmp_path, silent)


def test_a_run_waits_for_the_second_person_that_a_task_was_widened_for(tmp_path: Path) -> None:
    from labeling_ui.tasks.overlap import AdaptiveOverlap, widen_all

    tasks, people = tasks_and_people(4)
    against = {name: 9 - rank for name, rank in people[0].ranks.items()}
    with closing(Store(tmp_path / "rankings.sqlite")) as store:
        store.add_tasks(tasks)
        judge = Ranking(tasks[0].id, "judge:m/1", "judge", against)
        store.submit_all([*people, judge])
        assert widen_all(store, AdaptiveOverlap()) == 1
    with pytest.raises(PeopleNeeded, match="3 of 4 tasks are ranked"):
        ranked_by_people(settings(), tasks, tmp_path, silent)


def test_a_reward_model_orders_the_tasks_that_are_left(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    RewardModel.from_base(base, 0).save(tmp_path / "rm", tiny_tokenizer())
    tasks, people = tasks_and_people(LEAST + 8)
    with closing(Store(tmp_path / "rankings.sqlite")) as store:
        store.add_tasks(tasks)
        store.submit_all(people[:LEAST])
        assert chooser(str(tmp_path / "rm"), tasks).refresh(store)
        assert store.events()[-1].data == {"count": 8}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"choose": "uncertainty"}, "reward_model is not set"),
        ({"adaptive_overlap": {"margin": 0.5}}, "no scores that could lie close"),
        ({"adaptive_overlap": {"most": 2}, "per_task": 2}, "more people a task at most"),
    ],
)
def test_a_setting_without_effect_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**values)
