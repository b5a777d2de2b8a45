"""Two people never hold one lease, no task gets too many answers, nothing sent is refused."""

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from labeling_ui.store.leases import LeaseError
from labeling_ui.store.store import Store
from labeling_ui.tasks.assignment import Assignment, Lease
from labeling_ui.tasks.queue import Mixing
from reward_models.records import Ranking
from tests.labeling_ui.examples import at_once, ranks_of, small_task


@dataclass
class Clock:
    """A clock that is set by hand."""

    now: float = 1_000_000.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def desk(where: str, clock: Clock) -> Assignment:
    store = Store(where, clock=lambda: clock.now)
    return Assignment(store, rng=random.Random(0), lease_s=60)


def answer(lease: Lease, annotator: str, order: str = "abcd") -> dict[str, object]:
    ranks = ranks_of(order)
    return {"task": lease.task, "annotator": annotator, "kind": "human", "ranks": ranks}


def held(desk: Assignment, annotator: str) -> Lease:
    """The task that this person works on."""
    lease = desk.next_task(annotator)
    assert lease is not None
    return lease


def hand_in(desk: Assignment, annotator: str, form: str = "1", order: str = "abcd") -> str:
    lease = held(desk, annotator)
    return desk.submit(annotator, lease.token, form, answer(lease, annotator, order))


def test_a_task_is_held_by_one_person_at_a_time(desk: Assignment) -> None:
    desk.store.add_tasks([small_task("t1")])
    first = held(desk, "ada")
    assert desk.next_task("ben") is None
    assert desk.next_task("ada") == first


def test_each_task_goes_to_as_many_people_as_asked_for(desk: Assignment) -> None:
    desk.store.add_tasks([small_task("t1"), small_task("t2")], overlap=2)
    given = [hand_in(desk, name) for name in ("ada", "ben", "cyd", "dan")]
    assert given == ["stored"] * 4
    assert Counter(r.task for r in desk.store.rankings()) == {"t1": 2, "t2": 2}
    assert desk.next_task("eve") is None


def test_a_lease_that_ran_out_frees_the_place_and_a_draft_renews_it(
    desk: Assignment, clock: Clock
) -> None:
    desk.store.add_tasks([small_task("t1")])
    lease = held(desk, "ada")
    clock.now += 59
    assert desk.save_draft("ada", lease.token, 1, "tab", {"x": 1})
    clock.now += 59
    assert desk.next_task("ben") is None
    clock.now += 2
    assert desk.next_task("ben") is not None


def test_a_late_answer_is_surplus_only_if_the_place_is_taken(
    desk: Assignment, clock: Clock
) -> None:
    desk.store.add_tasks([small_task("t1"), small_task("t2")])
    leases = {name: held(desk, name) for name in ("ada", "ben")}
    clock.now += 61
    assert hand_in(desk, "cyd") == "stored"
    outcomes = {
        name: desk.submit(name, lease.token, "1", answer(lease, name))
        for name, lease in leases.items()
    }
    assert outcomes == {"ada": "surplus", "ben": "stored"}
    assert Counter(r.task for r in desk.store.rankings()) == {"t1": 1, "t2": 1}
    assert len(desk.store.history("t1", "ada")) == 1


def test_the_same_form_sent_again_changes_nothing_even_after_an_amendment(
    desk: Assignment,
) -> None:
    desk.store.add_tasks([small_task("t1")])
    lease = held(desk, "ada")
    for form, order, outcome in (
        ("1", "abcd", "stored"),
        ("1", "abcd", "again"),
        ("2", "dcba", "stored"),
        ("1", "abcd", "again"),
        ("3", "dcba", "again"),
    ):
        assert desk.submit("ada", lease.token, form, answer(lease, "ada", order)) == outcome
    assert [r.ranks["a"] for r in desk.store.history("t1", "ada")] == [1, 4]


def test_an_older_draft_never_overwrites_a_newer_one(desk: Assignment) -> None:
    desk.store.add_tasks([small_task("t1")])
    lease = held(desk, "ada")
    assert desk.save_draft("ada", lease.token, 5, "tab-1", {"x": 5})
    assert desk.save_draft("ada", lease.token, 5, "tab-1", {"x": 5})
    assert not desk.save_draft("ada", lease.token, 3, "tab-2", {"x": 3})
    again = held(desk, "ada")
    assert (again.draft, again.revision) == ({"x": 5}, 5)


def test_another_persons_token_opens_nothing(desk: Assignment) -> None:
    desk.store.add_tasks([small_task("t1")])
    lease = held(desk, "ada")
    for attempt in (
        lambda: desk.save_draft("eve", lease.token, 1, "tab", {}),
        lambda: desk.submit("eve", lease.token, "1", answer(lease, "eve")),
        lambda: desk.reopen("eve", lease.token),
        lambda: desk.look_up("ada", "made-up"),
    ):
        with pytest.raises(LeaseError, match="not one of yours"):
            attempt()
    assert desk.store.rankings() == []


def test_a_skipped_task_goes_to_another_person_and_can_be_taken_back(desk: Assignment) -> None:
    desk.store.add_tasks([small_task("t1")])
    lease = held(desk, "ada")
    skip = {**answer(lease, "ada"), "ranks": {}, "skipped": "upsetting"}
    assert desk.submit("ada", lease.token, "1", skip) == "stored"
    assert desk.next_task("ada") is None
    assert desk.reopen("ada", lease.token).state == "held"
    assert desk.next_task("ben") is None
    assert desk.submit("ada", lease.token, "2", answer(lease, "ada")) == "stored"
    assert [r.skipped for r in desk.store.rankings(skipped=True)] == [None]


def test_answers_from_a_file_take_places_of_their_tasks(desk: Assignment) -> None:
    desk.store.add_tasks([small_task("t1"), small_task("t2")], overlap=2)
    ranks = ranks_of("abcd")
    given = [Ranking(task, "imp", "imported", ranks) for task in ("t1", "t2")]
    desk.store.submit_all([*given, Ranking("t1", "sim", "simulated", ranks)])
    lease = held(desk, "ada")
    assert lease.task == "t2"
    assert hand_in(desk, "ada") == "stored"
    assert desk.next_task("ben") is None
    assert desk.next_task("imp") is None
    assert desk.store.submit(Ranking("t2", "imp", "imported", {**ranks, "a": 2}))
    assert Counter(r.task for r in desk.store.rankings()) == {"t1": 2, "t2": 2}


def test_gold_tasks_are_mixed_in_for_everyone(where: str) -> None:
    store = Store(where)
    right = ranks_of("abcd")
    gold = [small_task(f"gold-{i}") for i in range(20)]
    store.add_tasks(gold, gold={task.id: right for task in gold})
    store.add_tasks([small_task(f"t{i}") for i in range(200)])
    desk = Assignment(store, rng=random.Random(1), mixing=Mixing(gold_share=0.25))
    for name in ("ada", "ben"):
        for i in range(40):
            hand_in(desk, name, form=str(i))
    seen = Counter(r.annotator for r in store.rankings() if r.task.startswith("gold"))
    assert all(4 <= seen[name] <= 17 for name in ("ada", "ben"))


def test_priority_comes_before_age(desk: Assignment) -> None:
    desk.store.add_tasks([small_task("old")])
    desk.store.add_tasks([small_task("urgent")], priority=5)
    lease = held(desk, "ada")
    assert lease.task == "urgent"


def test_what_is_shown_is_every_response_once_in_an_order_of_its_own(desk: Assignment) -> None:
    desk.store.add_tasks([small_task("t1", 9)], overlap=5)
    orders = set()
    for name in ("ada", "ben", "cyd", "dan", "eve"):
        lease = held(desk, name)
        assert sorted(lease.shown_order) == list("abcdefghi")
        orders.add(lease.shown_order)
    assert len(orders) > 1


def test_many_people_at_once_lose_nothing_and_are_never_given_too_much(where: str) -> None:
    store = Store(where)
    store.add_tasks([small_task(f"t{i}") for i in range(30)], overlap=3)
    acknowledged: list[tuple[str, str]] = []

    def work(name: str) -> None:
        desk = Assignment(Store(store.where), rng=random.Random(name))
        while (lease := desk.next_task(name)) is not None:
            if desk.submit(name, lease.token, lease.task, answer(lease, name)) == "stored":
                acknowledged.append((lease.task, name))

    at_once(work, [f"p{i}" for i in range(6)])
    stored = [(r.task, r.annotator) for r in store.rankings()]
    assert sorted(stored) == sorted(acknowledged)
    assert set(Counter(task for task, _ in stored).values()) == {3}
    assert len(stored) == 90
