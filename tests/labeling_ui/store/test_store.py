"""Nothing labelled is lost, and nothing is counted twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from labeling_ui.store import database
from labeling_ui.store.store import Store
from reward_models.records import Ranking, RankingTask
from tests.labeling_ui.examples import ranking, small_task


def test_what_was_submitted_is_what_is_read_back(store: Store) -> None:
    store.add_tasks([small_task("t1")])
    given = Ranking(
        "t1",
        "ada",
        "human",
        {"a": 1, "b": 2, "c": 2, "d": 3},
        ratings={"a": 7, "d": 1},
        flags={"d": ["hallucination"]},
        notes="ünïcode \x00 \ud83d 🙂 עברית",
        seconds=12.5,
        shown_order=["d", "c", "b", "a"],
        time="2026-01-02T03:04:05+00:00",
        extra={"flags_no": {"a": ["hallucination"]}},
    )
    assert store.submit(given)
    assert store.rankings() == [given]


def test_the_same_form_sent_twice_is_one_ranking(store: Store) -> None:
    store.add_tasks([small_task("t1")])
    assert store.submit(ranking("t1", seconds=3.0))
    assert not store.submit(ranking("t1", seconds=4.0))
    assert len(store.rankings()) == 1
    assert [event.kind for event in store.events()] == ["tasks added", "submit"]


def test_an_amended_ranking_replaces_the_old_one_and_keeps_it_in_the_history(store: Store) -> None:
    store.add_tasks([small_task("t1")])
    for order in ("abcd", "dcba", "abcd"):
        assert store.submit(ranking("t1", order=order))
    assert [dict(r.ranks)["a"] for r in store.history("t1", "ada")] == [1, 4, 1]
    assert [dict(r.ranks)["a"] for r in store.rankings()] == [1]


def test_versions_within_one_batch_are_numbered_in_order(store: Store) -> None:
    store.add_tasks([small_task("t1")])
    assert store.submit_all([ranking("t1", order="abcd"), ranking("t1", order="dcba")]) == 2
    assert [r.ranks["d"] for r in store.rankings()] == [1]


def test_a_batch_with_one_bad_ranking_stores_nothing(store: Store) -> None:
    store.add_tasks([small_task("t1"), small_task("t2")])
    with pytest.raises(ValueError, match="4 responses but 3 ranks"):
        store.submit_all([ranking("t1"), ranking("t2", order="abc")])
    assert store.rankings() == []


def test_a_ranking_of_an_unknown_task_is_refused_by_name(store: Store) -> None:
    with pytest.raises(ValueError, match="there is no task 'nowhere'"):
        store.submit(ranking("nowhere"))


def test_tasks_come_back_unchanged_and_in_order(store: Store) -> None:
    first = RankingTask.from_json(
        {
            "id": "z",
            "prompt": "p",
            "context": "c",
            "category": "closed_qa",
            "responses": [
                {"id": "1", "text": "", "model": "m", "sampling": {}},
                {"id": "2", "text": "\x00 \\frac ${}", "model": "m", "sampling": {"t": 0.7}},
            ],
            "world": {"kept": [1, 2]},
        }
    )
    assert store.add_tasks([first, small_task("a")]) == 2
    assert store.add_tasks([first]) == 0
    assert store.tasks() == [first, small_task("a")]
    assert store.task("z") == first


def test_a_task_that_changed_its_text_is_refused(store: Store) -> None:
    store.add_tasks([small_task("t1")])
    with pytest.raises(ValueError, match="'t1' is already there with another text"):
        store.add_tasks([small_task("t1", 5)])


def test_gold_must_rank_the_responses_of_its_task(store: Store) -> None:
    with pytest.raises(ValueError, match="gold"):
        store.add_tasks([small_task("t1")], gold={"t1": {"a": 1}})


def test_skips_are_kept_but_not_counted_as_rankings(store: Store) -> None:
    store.add_tasks([small_task("t1")])
    store.submit(Ranking("t1", "ada", "human", {}, skipped="not my language"))
    assert store.rankings() == []
    assert [r.skipped for r in store.rankings(skipped=True)] == ["not my language"]


def test_simulated_rankings_can_be_told_from_human_ones(store: Store) -> None:
    store.add_tasks([small_task("t1")])
    simulated = Ranking("t1", "sim-1", "simulated", {"a": 1, "b": 2, "c": 3, "d": 4})
    store.submit_all([simulated, ranking("t1")])
    assert [r.annotator for r in store.rankings() if r.kind == "simulated"] == ["sim-1"]
    assert [r.annotator for r in store.rankings() if r.kind == "human"] == ["ada"]


@pytest.mark.bench
def test_three_thousand_rankings_are_stored_in_three_seconds(store: Store) -> None:
    names = [f"t{i}" for i in range(1000)]
    store.add_tasks([small_task(name) for name in names])
    many = [ranking(name, annotator=f"sim{j}") for name in names for j in range(3)]
    began_s = time.process_time()
    assert store.submit_all(many) == 3000
    assert time.process_time() - began_s < 3
    assert len(store.rankings()) == 3000


def test_a_store_of_an_earlier_version_is_brought_up_to_date_with_all_it_holds(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = sorted(database.MIGRATIONS.glob("*.sql"))
    first = tmp_path / "first"
    first.mkdir()
    for script in scripts[:2]:
        shutil.copy(script, first)
    with monkeypatch.context() as patched:
        patched.setattr(database, "MIGRATIONS", first)
        old = Store(where)
    row = {"id": "t1", "position": 1, "kind": "ranking", "overlap": 1, "priority": 0, "is_open": 1}
    row["record"] = json.dumps(small_task("t1").to_json())
    with old.database.write() as connection:
        database.insert(connection, "tasks", row)
    old.close()
    new = Store(where)
    assert new.tasks() == [small_task("t1")]
    assert new.submit(ranking("t1"))
    with new.database.read() as connection:
        numbers = connection.execute(text("SELECT number FROM schema_version ORDER BY 1")).scalars()
        assert list(numbers) == list(range(1, len(scripts) + 1))
    new.close()


def test_an_opened_store_is_opened_again_without_change(store: Store) -> None:
    store.add_tasks([small_task("t1")])
    store.submit(ranking("t1"))
    again = Store(store.where)
    assert again.rankings() == store.rankings()
    again.close()


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.sqlite").write_text("not a database, and long enough to be looked at " * 30)
    with pytest.raises(ValueError, match="cannot be opened"):
        Store(tmp_path / "x.sqlite")


def test_a_backup_taken_while_in_use_is_restored_whole(
    store: Store, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store.add_tasks([small_task("t1")])
    store.submit(ranking("t1", notes="ünï \x00 🙂"))
    with store.database.write() as connection:
        store.log(connection, "somebody", "is writing", None, {})
        store.database.backup(tmp_path / "copy")
    where = str(tmp_path / "copy")
    if store.database.dialect == "postgresql":
        where = request.getfixturevalue("postgres").database()
        plain = where.replace("postgresql+psycopg", "postgresql")
        restore = ["pg_restore", "--dbname", plain, tmp_path / "copy"]
        subprocess.run(restore, check=True)
    copy = Store(where)
    assert (copy.tasks(), copy.rankings()) == (store.tasks(), store.rankings())
    assert copy.submit(ranking("t1", annotator="ben"))
    assert copy.events()[-1].kind == "submit"
    copy.close()
    with pytest.raises(ValueError, match="is there already"):
        store.database.backup(tmp_path / "copy")


def test_a_backup_that_fails_leaves_nothing_behind(store: Store, tmp_path: Path) -> None:
    if store.database.dialect == "sqlite":
        pytest.skip("only PostgreSQL is dumped by another program")
    store.database.engine.url = store.database.engine.url.set(database="not_there")
    with pytest.raises(ValueError, match=r"pg_dump: .*not_there"):
        store.database.backup(tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


WRITER = """
    import sys
    from labeling_ui.store.store import Store
    from reward_models.records import Ranking
    store = Store(sys.argv[1])
    number = 0
    while True:
        name = f"t{number}"
        store.submit(Ranking(name, "ada", "human", {"a": 1, "b": 2, "c": 3, "d": 4}))
        print(name, flush=True)
        number += 1
"""


def test_what_was_acknowledged_survives_a_killed_process(where: str) -> None:
    store = Store(where)
    store.add_tasks([small_task(f"t{i}") for i in range(5000)])
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), where],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert writer.stdout is not None
    acknowledged = [writer.stdout.readline().strip() for _ in range(25)]
    writer.send_signal(signal.SIGKILL)
    acknowledged += writer.stdout.read().split()
    writer.wait()
    assert set(acknowledged) <= {r.task for r in Store(where).rankings()}
    store.close()
