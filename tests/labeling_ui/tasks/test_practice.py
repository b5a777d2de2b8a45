"""Practice is explained after the answer and counts nowhere; who drifts from gold is named."""

import random
from pathlib import Path

import numpy as np
import pytest

from labeling_ui.forms import Form, forms_with
from labeling_ui.reports.drift import WINDOW, drift
from labeling_ui.reports.quality import report
from labeling_ui.store.accounts import Account
from labeling_ui.store.progress import Progress
from labeling_ui.store.store import Store
from labeling_ui.tasks.assignment import Assignment
from labeling_ui.tasks.queue import Mixing, Screening
from labeling_ui.web.room import Room
from pipeline.config.labeling import RoomSettings
from pipeline.labeling.settings import add_known
from reward_models.atomic_files import write_jsonl
from reward_models.records import Ranking
from tests.labeling_ui.examples import ranking, ranks_of, small_task

RIGHT = ranks_of("abcd")
ADA = Account("ada", "annotator")


def room_of(store: Store, mixing: Mixing) -> Room:
    desk = Assignment(store, rng=random.Random(0), mixing=mixing)
    return Room(store, forms_with(Form(name="order only")), desk, Progress(store))


@pytest.fixture
def room(store: Store) -> Room:
    """Two practice tasks, one of gold and one of work, of which work is the oldest."""
    store.add_tasks([small_task("work")], priority=9)
    store.add_tasks([small_task("gold")], gold={"gold": RIGHT})
    known = {f"practice-{i}": RIGHT for i in range(2)}
    lessons = dict.fromkeys(known, "d **makes things up**")
    store.add_tasks([small_task(name) for name in known], gold=known, lessons=lessons)
    return room_of(store, Mixing(practice=True, screening=Screening(tasks=1)))


def answer(room: Room, order: str) -> dict[str, object]:
    lease = room.assignment.next_task("ada")
    assert lease is not None
    tiers = [[lease.shown_order.index(name)] for name in order]
    message = {"token": lease.token, "form": lease.task, "body": {"tiers": tiers}}
    return {**room.submit(ADA, message), "answered": lease.task}


def test_practice_comes_first_and_is_explained_once_it_is_answered(room: Room) -> None:
    view = room.next_task(ADA, {})
    assert "makes things up" not in str(view)
    replies = [answer(room, order) for order in ("abdc", "abcd", "abcd", "abcd")]
    assert [r["answered"] for r in replies] == ["practice-0", "practice-1", "gold", "work"]
    first, second, gold, work = (reply["feedback"] for reply in replies)
    assert (gold, work) == (None, None)  # gold is never told from work
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert (first["same"], first["pairs"], second["same"]) == (5, 6, 6)
    assert [(one["right"], one["given"]) for one in first["outputs"]] == [
        (1, 1),
        (2, 2),
        (3, 4),
        (4, 3),
    ]
    assert "<strong>makes things up</strong>" in first["explanation"]


def test_practice_is_in_no_number_about_labels_and_decides_no_screening(room: Room) -> None:
    for order in ("dcba", "dcba", "abcd", "abcd"):
        answer(room, order)  # wrong in practice, right with gold
    store = room.store
    assert [one.task for one in store.rankings()] == ["gold", "work"]
    assert {task.id for task in store.tasks()} == {"gold", "work"}
    assert ("ada", "screening passed") in [(e.actor, e.kind) for e in store.events()]
    numbers = report(
        store.tasks(),
        store.rankings(),
        gold=store.gold(),
        rng=np.random.default_rng(0),
        practice=store.practice(),
    )
    (row,) = numbers["annotators"]
    assert (row["gold"]["value"], row["practice"]["value"]) == (1.0, 0.0)


def test_only_the_first_answer_to_practice_is_counted(room: Room) -> None:
    room.next_task(ADA, {})
    room.store.submit_all([ranking("practice-0", order="dcba"), ranking("practice-0")])
    assert [one.ranks["d"] for one, _ in room.store.practice()] == [1]


def test_a_folder_of_practice_has_its_explanations_in_the_notes(
    store: Store, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "tasks.jsonl", [small_task("p").to_json()])
    right = Ranking("p", "owner", "human", RIGHT, notes="because")
    write_jsonl(tmp_path / "rankings.jsonl", [right.to_json()])
    add_known(RoomSettings(practice=str(tmp_path)), store)
    assert store.lesson("p") == (RIGHT, "because")
    assert store.lesson("other") is None


def counts(*shares: float) -> list[tuple[int, int]]:
    return [(round(6 * share), 6) for share in shares for _ in range(WINDOW)]


@pytest.mark.parametrize(
    ("shares", "falls"), [((1.0, 0.5), True), ((0.9, 0.9), False), ((0.5, 1.0), False)]
)
def test_a_fall_of_agreement_with_gold_is_told_from_chance(
    shares: tuple[float, float], falls: bool
) -> None:
    change = drift(counts(*shares), np.random.default_rng(0))
    assert change is not None
    assert change.is_fall == falls


def test_one_window_of_gold_is_too_little_to_speak_of_drift() -> None:
    assert drift(counts(1.0), np.random.default_rng(0)) is None


def test_the_report_names_who_drifts_and_shows_gold_by_time() -> None:
    tasks = [small_task(f"g{i:02}") for i in range(2 * WINDOW)]
    rankings = [
        ranking(
            t.id,
            name,
            "dcba" if name == "tired" and i >= WINDOW else "abcd",
            time=f"2026-01-{1 + i:02}T10:00:00",
        )
        for i, t in enumerate(tasks)
        for name in ("steady", "tired")
    ]
    gold = {task.id: RIGHT for task in tasks}
    numbers = report(tasks, rankings, gold=gold, rng=np.random.default_rng(0))
    steady, tired = numbers["annotators"]
    assert [one["gold"]["value"] for one in tired["gold_over_time"]] == [1.0, 0.0]
    assert tired["gold_over_time"][1]["from"] == "2026-01-11"
    assert [any("latest" in text for text in row["warnings"]) for row in (steady, tired)] == [
        False,
        True,
    ]
