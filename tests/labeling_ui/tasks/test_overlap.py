"""A task gets another person where that tells something, and nowhere else."""

import random
from collections import Counter

import pytest

from labeling_ui.store.store import Store
from labeling_ui.store.withdrawal import restore, withdraw
from labeling_ui.tasks.assignment import Assignment
from labeling_ui.tasks.overlap import AdaptiveOverlap, reason_for_more, widen_all
from reward_models.records import Ranking
from tests.labeling_ui.examples import at_once, ranking, ranks_of, small_task

RULE = AdaptiveOverlap(most=3, agreement=0.6)


def judge(task: str, order: str) -> Ranking:
    return Ranking(task, "judge:m/1", "judge", ranks_of(order))


@pytest.mark.parametrize(
    ("people", "judges", "scores", "reason"),
    [
        (["abcd"], ["abdc"], None, None),
        (["abcd"], ["dcba"], None, "a person and a model disagree"),
        (["abcd"], [], "dcba", "a person and a model disagree"),
        (["abcd"], [], None, None),  # nobody to disagree with
        (["abcd", "abdc"], ["dcba"], None, None),  # two people agree: the model is wrong
        (["abcd", "dcba"], ["abcd"], None, "people disagree"),
        (["abcd", "dcba", "badc"], [], None, None),  # enough people
        ([], ["abcd"], None, None),
    ],
)
def test_another_person_is_wanted_where_it_pays(
    people: list[str], judges: list[str], scores: str | None, reason: str | None
) -> None:
    ranked = [ranking("t", f"p{i}", order) for i, order in enumerate(people)]
    models = [judge("t", order) for order in judges]
    by_model = None if scores is None else {name: -float(i) for i, name in enumerate(scores)}
    assert reason_for_more(ranked, models, by_model, RULE) == reason


def test_a_small_margin_of_the_reward_model_is_a_reason() -> None:
    close, wide = ({name: gap * i for i, name in enumerate("dcba")} for gap in (0.01, 1.0))
    rule = AdaptiveOverlap(margin=0.1)
    margins = [reason_for_more([ranking("t")], [], scores, rule) for scores in (close, wide)]
    assert margins == ["the reward model's margin is small", None]


def answer(desk: Assignment, name: str, order: str) -> str | None:
    lease = desk.next_task(name)
    if lease is None:
        return None
    record = {"task": lease.task, "annotator": name, "kind": "human", "ranks": ranks_of(order)}
    desk.submit(name, lease.token, f"{lease.task}", record)
    return lease.task


def test_a_disputed_task_comes_back_to_another_person_and_an_agreed_one_does_not(
    store: Store,
) -> None:
    store.add_tasks([small_task("t0"), small_task("t1")])
    store.submit_all([judge("t0", "abcd"), judge("t1", "dcba")])
    desk = Assignment(store, rng=random.Random(0), overlap=RULE)
    assert [answer(desk, "ada", "abcd") for _ in range(3)] == ["t0", "t1", None]
    assert [answer(desk, "ben", "dcba") for _ in range(2)] == ["t1", None]
    assert [answer(desk, "cleo", "abcd") for _ in range(2)] == ["t1", None]  # a third, the last
    assert answer(desk, "dov", "abcd") is None
    reasons = [event.data["reason"] for event in store.events() if event.kind == "another ranking"]
    assert reasons == ["a person and a model disagree", "people disagree"]
    assert store.overlaps() == {"t0": 1, "t1": 3}


def test_nothing_is_over_assigned_while_tasks_widen(store: Store) -> None:
    store.add_tasks([small_task(f"t{i}") for i in range(6)])
    store.submit_all([judge(f"t{i}", "dcba") for i in range(6)])
    desk = Assignment(store, rng=random.Random(0), overlap=RULE)

    def work(name: str) -> None:
        while answer(desk, name, "abcd") is not None:
            pass

    at_once(work, [f"p{i}" for i in range(5)])
    work("late")  # what was widened when everybody else had gone
    # The first person disagrees with the judge, the second agrees with the first: two each.
    assert Counter(one.task for one in store.rankings()) == {f"t{i}": 2 for i in range(6)}


def test_rankings_that_came_before_the_judge_are_looked_at_too(store: Store) -> None:
    store.add_tasks([small_task("t0"), small_task("t1")])
    store.submit_all([ranking("t0"), ranking("t1")])
    store.submit_all([judge("t0", "dcba"), judge("t1", "abcd")])
    assert widen_all(store, RULE) == 1
    assert widen_all(store, RULE) == 0  # the place is there already
    assert store.overlaps() == {"t0": 2, "t1": 1}


def test_a_judge_is_withdrawn_and_comes_back_and_no_person_is_asked_instead(store: Store) -> None:
    store.add_tasks([small_task("t0")])
    store.submit_all([ranking("t0"), judge("t0", "abcd")])
    assert withdraw(store, "judge:m/1", "owner") == 1
    assert (store.rankings(use="judges"), len(store.rankings())) == ([], 1)
    assert Assignment(store, rng=random.Random(0)).next_task("ben") is None
    assert restore(store, "judge:m/1", "owner") == (1, 0)  # it takes no place: nothing is surplus
    assert len(store.rankings(use="judges")) == 1
