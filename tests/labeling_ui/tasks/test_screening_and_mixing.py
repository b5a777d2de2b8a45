"""Screening, the mix of tasks, daily limits and pauses, each with its consequence."""

import random
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest

from labeling_ui.forms import Form, forms_with
from labeling_ui.reports.quality import report
from labeling_ui.store.accounts import Account, Accounts
from labeling_ui.store.progress import DAY_S, Progress
from labeling_ui.store.store import Store
from labeling_ui.tasks.assignment import Assignment
from labeling_ui.tasks.queue import Mixing, Screening
from labeling_ui.web.owner import Owner
from labeling_ui.web.room import Room, reply_to
from reward_models.records import Ranking, RankingTask
from tests.labeling_ui.examples import ranks_of, small_task

RIGHT = ranks_of("abcd")
FLAGS = {"a": {"toxic": False}, "d": {"toxic": True}}


class Workplace:
    """A room whose people answer as the test says."""

    def __init__(self, store: Store, mixing: Mixing | None = None) -> None:
        self.store = store
        self.desk = Assignment(store, rng=random.Random(3), mixing=mixing or Mixing())
        self.room = Room(store, forms_with(Form(name="order only")), self.desk, Progress(store))

    def answer(self, name: str, order: str, **more: object) -> str | None:
        """One task of this person, answered; its id, or None if there was none."""
        lease = self.desk.next_task(name)
        if lease is None:
            return None
        given = {"task": lease.task, "annotator": name, "kind": "human"}
        given = {**given, "ranks": ranks_of(order), **more}
        assert self.desk.submit(name, lease.token, lease.task, given) == "stored"
        return lease.task

    def why(self, account: Account) -> object:
        return reply_to(self.room.next_task, account, {})["why"]


def with_gold(store: Store, flags: Mapping[str, Mapping[str, bool]] | None = None) -> None:
    gold = [small_task(f"gold-{i}") for i in range(4)]
    known = {task.id: RIGHT for task in gold}
    known_flags = {task.id: flags for task in gold} if flags else None
    store.add_tasks([small_task(f"t{i}") for i in range(8)], priority=9, overlap=9)
    store.add_tasks(gold, gold=known, gold_flags=known_flags)


SCREENED = Mixing(screening=Screening(tasks=3))


def test_who_agrees_with_gold_is_handed_the_rest_after_it(store: Store) -> None:
    with_gold(store)
    room = Workplace(store, SCREENED)
    order = ["gold-0", "gold-1", "gold-2", "t0", "t1"]
    assert [room.answer("ada", "abdc") for _ in order] == order
    assert ("ada", "screening passed") in [(e.actor, e.kind) for e in store.events()]


def test_who_agrees_too_little_with_gold_is_handed_nothing_more_and_told_so(store: Store) -> None:
    with_gold(store)
    room = Workplace(store, SCREENED)
    assert [room.answer("bad", "dcab") for _ in range(5)][2:] == ["gold-2", None, None]
    assert room.why(Account("bad", "annotator")) == "screening"
    (event,) = [e for e in store.events() if e.kind == "screening failed"]
    assert event.data == {"comparisons": pytest.approx(1 / 6), "flags": None}
    assert [r.annotator for r in store.rankings() if not r.task.startswith("gold")] == []


def test_the_owner_can_let_in_whom_the_screening_kept_out(store: Store) -> None:
    with_gold(store)
    room = Workplace(store, SCREENED)
    accounts = Accounts(store)
    accounts.add("bad", "annotator")
    owner = Owner(store, accounts, Progress(store))
    for _ in range(3):
        room.answer("bad", "dcba")
    olga = Account("olga", "owner")
    people = {one["name"]: one["screening"] for one in owner.overview(olga, {})["people"]}
    assert people == {"bad": "failed"}
    with pytest.raises(ValueError, match="for the owner"):
        owner.admit(Account("bad", "annotator"), {"account": "bad"})
    owner.admit(olga, {"account": "bad"})
    assert room.answer("bad", "abcd") == "t0"
    assert (store.events()[-3].actor, store.events()[-3].kind) == ("olga", "admitted")


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ({"flags": {"d": ["toxic"]}, "flags_no": {"a": ["toxic"]}}, "passed"),
        ({"flags": {"d": ["toxic"]}}, "failed"),  # unanswered is not no
        ({"flags": {"a": ["toxic"], "d": ["toxic"]}}, "failed"),
    ],
)
def test_flags_count_beside_the_order(
    store: Store, answer: dict[str, object], verdict: str
) -> None:
    with_gold(store, FLAGS)
    room = Workplace(store, SCREENED)
    for _ in range(3):
        room.answer("ada", "abcd", **answer)
    assert [e.kind for e in store.events() if e.kind.startswith("screening")] == [
        f"screening {verdict}"
    ]


def test_a_tie_is_half_right_and_skips_do_not_pass(store: Store) -> None:
    with_gold(store)
    room = Workplace(store, Mixing(screening=Screening(tasks=3, comparisons=0.5)))
    for _ in range(3):
        room.answer("tia", "a", ranks=dict.fromkeys("abcd", 1))
    for _ in range(4):
        room.answer("sly", "", ranks={}, skipped="no")
    assert room.answer("tia", "abcd") == "t0"
    assert room.answer("sly", "abcd") is None


def test_a_verdict_stays_when_a_gold_answer_is_amended(store: Store) -> None:
    with_gold(store)
    room = Workplace(store, SCREENED)
    tokens = []
    for _ in range(3):
        lease = room.desk.next_task("bad")
        assert lease is not None
        tokens.append((lease.token, lease.task))
        room.answer("bad", "dcba")
    token, task = tokens[0]
    amended = {"task": task, "annotator": "bad", "kind": "human", "ranks": RIGHT}
    assert room.desk.submit("bad", token, "again", amended) == "stored"
    assert room.answer("bad", "abcd") is None


def test_categories_come_in_the_mix_that_was_asked_for(store: Store) -> None:
    tasks = [
        RankingTask(f"{kind}-{i}", "p", small_task("x").responses, category=kind)
        for kind in ("qa", "chat", "other")
        for i in range(80)
    ]
    store.add_tasks(tasks)
    room = Workplace(store, Mixing(categories={"qa": 3, "chat": 1}))
    seen = Counter((room.answer("ada", "abcd") or "").split("-")[0] for _ in range(80))
    assert 45 <= seen["qa"] <= 72
    assert seen["other"] == 0
    assert seen["qa"] + seen["chat"] == 80
    rest = Counter((room.answer("ada", "abcd") or "").split("-")[0] for _ in range(160))
    assert rest["other"] == 80  # when a category is used up the others still come


def test_a_daily_limit_ends_the_day_and_not_the_work(where: str) -> None:
    now = [DAY_S * 20_000 + 10]
    store = Store(where, clock=lambda: now[0])
    store.add_tasks([small_task(f"t{i}") for i in range(5)])
    room, ada = Workplace(store), Account("ada", "annotator", daily_limit=2)
    for _ in range(2):
        assert room.why(ada) is None
        room.answer("ada", "abcd")
    assert room.why(ada) == "limit"
    now[0] += DAY_S
    assert room.why(ada) is None
    store.close()


def test_a_pause_stops_handing_out_and_takes_what_is_in_hand(store: Store) -> None:
    store.add_tasks([small_task(f"t{i}") for i in range(3)])
    room, ada = Workplace(store), Account("ada", "annotator")
    token = reply_to(room.room.next_task, ada, {})["task"]["token"]
    room.room.progress.pause("olga", paused=True)
    assert room.why(Account("ben", "annotator")) == "paused"
    body = {"tiers": [[0], [1], [2], [3]]}
    reply = reply_to(room.room.submit, ada, {"token": token, "form": "f", "body": body})
    assert (reply["outcome"], reply["why"]) == ("stored", "paused")
    room.room.progress.pause("olga", paused=False)
    assert room.why(ada) is None


def test_the_owner_sees_how_far_a_reward_model_agrees_with_each_person() -> None:
    tasks = [small_task(f"t{i}") for i in range(20)]
    scores = {task.id: {"a": 3.0, "b": 2.0, "c": 1.0, "d": 1.0} for task in tasks[:10]}
    likes = {"ada": RIGHT, "ben": ranks_of("dcba")}
    given = [Ranking(t.id, who, "human", ranks) for t in tasks for who, ranks in likes.items()]
    made = report(tasks, given, gold={}, rng=np.random.default_rng(0), scores=scores)
    rates = {row["name"]: row["model"] for row in made["annotators"]}
    assert (rates["ada"]["value"], rates["ben"]["value"]) == (1.0, 0.0)
    assert (rates["ada"]["num_pairs"], rates["ada"]["num_prompts"]) == (50, 10)  # c and d are equal
    assert made["model"]["value"] == 0.5
