"""Answers are withdrawn and restored, leases released: nothing is lost, no task gets too many."""

import random
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import replace

import pytest

from labeling_ui.store.leases import LeaseError
from labeling_ui.store.store import Store
from labeling_ui.store.withdrawal import answers_by_person, held, release, restore, withdraw
from labeling_ui.tasks.assignment import IDLE_S, Assignment
from tests.labeling_ui.examples import at_once, ranking, small_task
from tests.labeling_ui.tasks.test_assignment import Clock, answer, hand_in
from tests.labeling_ui.tasks.test_assignment import held as task_of


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def desk(where: str, clock: Clock) -> Assignment:
    return Assignment(Store(where, clock=lambda: clock.now), rng=random.Random(0))


def counted(store: Store) -> list[tuple[str, str]]:
    return [(one.task, one.annotator) for one in store.rankings()]


def test_withdrawn_answers_count_nowhere_and_their_tasks_go_to_others(desk: Assignment) -> None:
    store = desk.store
    store.add_tasks([small_task("t1"), small_task("t2"), small_task("t3")])
    for form in "12":
        hand_in(desk, "bad", form)
    store.submit(ranking("t3", "good"))
    assert withdraw(store, "bad", "olga") == 2
    assert counted(store) == [("t3", "good")]
    assert answers_by_person(store, withdrawn=True) == {"bad": 2}
    assert desk.next_task("bad") is None
    assert [hand_in(desk, "ben", form) for form in "12"] == ["stored"] * 2
    assert desk.next_task("ben") is None
    assert len(store.history("t1", "bad")) == 1
    (event,) = [one for one in store.events() if one.kind == "withdrew"]
    assert (event.actor, event.data) == ("olga", {"account": "bad", "tasks": ["t1", "t2"]})
    with pytest.raises(ValueError, match="'bad' has no answer that counts"):
        withdraw(store, "bad", "olga")


def test_restored_answers_count_unless_others_have_answered(desk: Assignment) -> None:
    store = desk.store
    store.add_tasks([small_task("t1"), small_task("t2"), small_task("t3")])
    for form in "123":
        hand_in(desk, "bad", form)
    withdraw(store, "bad", "olga")
    hand_in(desk, "ben")
    task_of(desk, "cyd")  # in hand, so that this place is taken as well
    assert restore(store, "bad", "olga") == (3, 2)
    assert sorted(counted(store)) == [("t1", "ben"), ("t3", "bad")]
    assert hand_in(desk, "cyd") == "stored"
    assert desk.next_task("dan") is None
    with pytest.raises(ValueError, match="nothing of 'bad' is withdrawn"):
        restore(store, "bad", "olga")


def test_an_amendment_of_a_withdrawn_answer_is_stored_and_counts_no_more_than_it(
    desk: Assignment,
) -> None:
    desk.store.add_tasks([small_task("t1")])
    lease = task_of(desk, "bad")
    desk.submit("bad", lease.token, "1", answer(lease, "bad"))
    withdraw(desk.store, "bad", "olga")
    with pytest.raises(LeaseError, match="withdrawn by the owner"):
        desk.reopen("bad", lease.token)
    assert desk.submit("bad", lease.token, "2", answer(lease, "bad", "dcba")) == "surplus"
    assert counted(desk.store) == []
    assert restore(desk.store, "bad", "olga") == (1, 0)
    assert [one.ranks["d"] for one in desk.store.rankings()] == [1]


def test_a_released_task_goes_to_the_next_and_its_holders_work_is_kept(desk: Assignment) -> None:
    desk.store.add_tasks([small_task("t1")])
    lease = task_of(desk, "ada")
    desk.save_draft("ada", lease.token, 1, "tab", {"note": "half"})
    assert [(one.annotator, one.task) for one in held(desk.store)] == [("ada", "t1")]
    assert desk.next_task("ben") is None
    assert release(desk.store, "ada", "olga") == 1
    assert held(desk.store) == []
    again = task_of(desk, "ada")  # nobody has asked for it meanwhile
    assert (again.token, again.draft) == (lease.token, {"note": "half"})
    release(desk.store, "ada", "olga")
    assert hand_in(desk, "ben") == "stored"
    assert desk.submit("ada", lease.token, "late", answer(lease, "ada")) == "surplus"
    with pytest.raises(ValueError, match="'ada' holds no task"):
        release(desk.store, "ada", "olga")


def test_the_last_task_does_not_wait_for_somebody_who_left(desk: Assignment, clock: Clock) -> None:
    desk.store.add_tasks([small_task("t1"), small_task("t2")])
    idle, busy = task_of(desk, "idle"), task_of(desk, "busy")
    clock.now += IDLE_S - 1
    desk.save_draft("busy", busy.token, 1, "tab", {})
    assert desk.next_task("ben") is None
    clock.now += 1
    assert task_of(desk, "ben").task == idle.task
    assert desk.next_task("cyd") is None  # one works on each
    assert hand_in(desk, "ben") == hand_in(desk, "busy") == "stored"
    assert desk.submit("idle", idle.token, "late", answer(idle, "idle")) == "surplus"
    assert Counter(counted(desk.store)) == {("t1", "ben"): 1, ("t2", "busy"): 1}


def test_no_task_gets_too_many_while_answers_are_withdrawn_and_restored(desk: Assignment) -> None:
    desk = replace(desk, rng=random.Random(1))
    store = desk.store
    store.add_tasks([small_task(f"t{i}") for i in range(12)], overlap=2)
    done = threading.Event()

    def meddle() -> None:
        while not done.is_set():
            for action in (withdraw, restore, release):
                with suppress(ValueError):
                    action(store, "p0", "olga")

    def work(name: str) -> None:
        while (lease := desk.next_task(name)) is not None:
            desk.submit(name, lease.token, lease.task, answer(lease, name))

    meddler = threading.Thread(target=meddle)
    meddler.start()
    at_once(work, [f"p{i}" for i in range(4)])
    done.set()
    meddler.join()
    with suppress(ValueError):
        restore(store, "p0", "olga")
    for name in ("p1", "p2", "p3"):
        work(name)
    assert max(Counter(task for task, _ in counted(store)).values()) == 2
    assert Counter(task for task, _ in counted(store)) == {f"t{i}": 2 for i in range(12)}
