"""The store: tasks, every version of every answer, and a log that only grows.

People and simulated annotators write through the same `submit`. A submit that returned is on the
disk; sent again it changes nothing. An amended answer is a new version beside the old one.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from labeling_ui.forms import TaskKind
from labeling_ui.store.database import Database, dumps, first, insert, run, run_for_ids
from labeling_ui.store.leases import take_places
from labeling_ui.store.records import RoomTask, task_from
from reward_models.records import Ranking, RankingTask, Use


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the log: who did what to which task. `time` is seconds since 1970, UTC."""

    time: float
    actor: str
    kind: str
    task: str | None
    data: Mapping[str, Any]


class Store:
    """Tasks and answers in one database; safe to share between threads and processes."""

    def __init__(self, where: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open or create the store at a path (SQLite) or a SQLAlchemy URL."""
        self.database = Database(where)
        self.where = str(where)
        self.clock = clock

    def close(self) -> None:
        """Close all connections."""
        self.database.close()

    def add_tasks(
        self,
        new: Sequence[RoomTask],
        kind: TaskKind = "ranking",
        *,
        overlap: int = 1,
        priority: int = 0,
        is_open: bool = True,
        gold: Mapping[str, Mapping[str, int]] | None = None,
        gold_flags: Mapping[str, Mapping[str, Mapping[str, bool]]] | None = None,
        lessons: Mapping[str, str] | None = None,
    ) -> int:
        """Add tasks of one kind that `overlap` people each are to answer; return how many were new.

        `gold` gives the known ranks of some of them by task id, and `gold_flags` known answers to
        flags of their responses; `lessons` explains the known ranks of those that are for practice,
        which are in no other number. A task that is not open is given only to who asks for it by
        name. A task that is already there is left alone; ValueError if its text or kind differs,
        because answers to it would change meaning.
        """
        if overlap < 1:
            raise ValueError(f"overlap is {overlap}, expected at least 1")
        gold, gold_flags, lessons = gold or {}, gold_flags or {}, lessons or {}
        with self.database.write() as connection:
            sql = "SELECT id, kind, record FROM tasks WHERE id IN :ids"
            stored = run_for_ids(connection, sql, [task.id for task in new])
            known = {row.id: (row.kind, json.loads(row.record)) for row in stored}
            last = run(connection, "SELECT max(position) FROM tasks").scalar() or 0
            rows: list[dict[str, Any]] = []
            for task in new:
                record = dumps(task.to_json())
                content = (kind, json.loads(record))
                if known.setdefault(task.id, content) != content:
                    raise ValueError(f"task '{task.id}' is already there with another text or kind")
                if known[task.id] is not content:
                    continue
                ranks, flags = gold.get(task.id), gold_flags.get(task.id)
                if ranks is not None:
                    _check_gold(task, ranks)
                rows.append(
                    {
                        "id": task.id,
                        "position": last + 1 + len(rows),
                        "kind": kind,
                        "category": task.category,
                        "record": record,
                        "overlap": overlap,
                        "priority": priority,
                        "gold": None if ranks is None else dumps(ranks),
                        "gold_flags": dumps(flags) if flags else None,
                        "is_open": int(is_open),
                        "lesson": lessons.get(task.id),
                    }
                )
            insert(connection, "tasks", *rows)
            if rows:
                data = {"count": len(rows), "kind": kind}
                self.log(connection, "store", "tasks added", None, data)
        return len(rows)

    def set_priority(self, ids: Sequence[str], priority: int) -> int:
        """Give tasks this priority; return how many had another."""
        with self.database.write() as connection:
            sql = "SELECT id, priority FROM tasks WHERE id IN :ids"
            rows = run_for_ids(connection, sql, ids)
            changed = [row.id for row in rows if row.priority != priority]
            for task in changed:
                sql = "UPDATE tasks SET priority = :priority WHERE id = :task"
                run(connection, sql, task=task, priority=priority)
            if changed:
                data = {"tasks": changed, "priority": priority}
                self.log(connection, "store", "priority changed", None, data)
        return len(changed)

    def tasks(self) -> list[RankingTask]:
        """Return all ranking tasks in order of arrival."""
        sql = "SELECT record FROM tasks WHERE kind = 'ranking' AND lesson IS NULL ORDER BY position"
        return [RankingTask.from_json(json.loads(row.record)) for row in self._read(sql)]

    def task(self, task_id: str) -> RankingTask:
        """Return one task; ValueError if there is none of that id."""
        with self.database.read() as connection:
            return _ranking_tasks(connection, [task_id])[task_id]

    def gold(self) -> dict[str, dict[str, int]]:
        """Return the known ranks of the gold tasks, by task id."""
        sql = "SELECT id, gold FROM tasks WHERE gold IS NOT NULL AND lesson IS NULL"
        return {row.id: json.loads(row.gold) for row in self._read(sql)}

    def overlaps(self) -> dict[str, int]:
        """Return the number of people who are to answer each task, by its id."""
        return {row.id: row.overlap for row in self._read("SELECT id, overlap FROM tasks")}

    def lesson(self, task: str) -> tuple[dict[str, int], str] | None:
        """Return the known ranks of a practice task and their explanation; None of any other."""
        with self.database.read() as connection:
            row = first(connection, "tasks", id=task)
        if row is None or row.lesson is None:
            return None
        return dict(json.loads(row.gold)), str(row.lesson)

    def practice(self) -> list[tuple[Ranking, dict[str, int]]]:
        """Return people's first answers to practice tasks, each with the known ranks, in order."""
        sql = """SELECT a.record, t.gold FROM answers a JOIN tasks t ON t.id = a.task
                 WHERE t.lesson IS NOT NULL AND a.version = 1 AND a.is_skip = 0
                 AND a.is_withdrawn = 0 ORDER BY a.id"""
        rows = self._read(sql)
        return [(Ranking.from_json(json.loads(r.record)), json.loads(r.gold)) for r in rows]

    def set_order(self, urgency: Mapping[str, float]) -> None:
        """Set which tasks come first within their priority; those not named come last."""
        with self.database.write() as connection:
            run(connection, "UPDATE tasks SET urgency = 0 WHERE urgency <> 0")
            for task, value in urgency.items():
                sql = "UPDATE tasks SET urgency = :urgency WHERE id = :id"
                run(connection, sql, id=task, urgency=value)
            self.log(connection, "store", "tasks ordered", None, {"count": len(urgency)})

    def submit(self, ranking: Ranking) -> bool:
        """Store a ranking for good; False if the annotator's latest answer has the same content."""
        return self.submit_all([ranking]) == 1

    def submit_all(self, rankings: Iterable[Ranking]) -> int:
        """Store many rankings in one transaction, all or none; return how many were new.

        They take places of their tasks, as answers to leases do; judges take none. ValueError if a
        task is unknown or a ranking leaves out one of its responses.
        """
        batch = list(rankings)
        with self.database.write() as connection:
            ids = sorted({ranking.task for ranking in batch})
            tasks = _ranking_tasks(connection, ids)
            sql = "SELECT * FROM answers WHERE task IN :ids AND is_latest = 1"
            answers = run_for_ids(connection, sql, ids)
            latest = {(row.task, row.annotator): (row.version, row.record) for row in answers}
            rows = []
            for ranking in batch:
                ranking.check_against(tasks[ranking.task])
                version, before = latest.get((ranking.task, ranking.annotator), (0, None))
                row = answer_row(ranking.to_json(), version + 1, self.clock())
                if before is not None and same_content(before, row["record"]):
                    continue
                latest[ranking.task, ranking.annotator] = (version + 1, row["record"])
                rows.append(row)
            self.append(connection, rows)
            people = [row for row in rows if row["source"] != "judge"]
            take_places(connection, people, self.clock())
        return len(rows)

    def append(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows of `answers` within a write transaction; older versions are no longer latest."""
        newest = {(row["task"], row["annotator"]): row["version"] for row in rows}
        for task, annotator in (key for key, version in newest.items() if version > 1):
            sql = "UPDATE answers SET is_latest = 0 WHERE task = :task AND annotator = :annotator"
            run(connection, sql, task=task, annotator=annotator)
        new = [
            {**row, "is_latest": int(newest[row["task"], row["annotator"]] == row["version"])}
            for row in rows
        ]
        insert(connection, "answers", *new)
        insert(connection, "events", *(_submit_event(row) for row in new))

    def rankings(self, *, use: Use = "people", skipped: bool = False) -> list[Ranking]:
        """Return the latest ranking of each annotator on each task, oldest first.

        Judges' come only where `use` asks for them. Skips are left out unless asked for; answers
        beyond a task's overlap, and withdrawn ones, stay in the history but never count here.
        """
        sql = """SELECT a.record FROM answers a JOIN tasks t ON t.id = a.task
                 WHERE t.kind = 'ranking' AND t.lesson IS NULL AND a.is_latest = 1
                 AND a.is_surplus = 0 AND a.is_withdrawn = 0"""
        sql += {"people": " AND a.source <> 'judge'", "judges": " AND a.source = 'judge'"}.get(
            use, ""
        )
        sql += "" if skipped else " AND a.is_skip = 0"
        rows = self._read(f"{sql} ORDER BY a.id")
        return [Ranking.from_json(json.loads(row.record)) for row in rows]

    def answers(self, kind: TaskKind) -> list[tuple[RoomTask, dict[str, Any]]]:
        """Return tasks of one kind with each annotator's latest answer; no skips, no surplus."""
        sql = """SELECT t.record AS task, a.record AS answer
                 FROM answers a JOIN tasks t ON t.id = a.task
                 WHERE t.kind = :kind AND a.is_latest = 1 AND a.is_skip = 0 AND a.is_surplus = 0
                 AND a.is_withdrawn = 0 ORDER BY a.id"""
        rows = self._read(sql, kind=kind)
        return [(task_from(kind, json.loads(row.task)), json.loads(row.answer)) for row in rows]

    def latest_answer(self, task: str, annotator: str) -> dict[str, Any] | None:
        """Return a person's latest answer to a task of any kind, if there is one."""
        with self.database.read() as connection:
            row = first(connection, "answers", task=task, annotator=annotator, is_latest=1)
        return None if row is None else dict(json.loads(row.record))

    def history(self, task: str, annotator: str) -> list[Ranking]:
        """Return every version of one annotator's answer to one task, oldest first."""
        sql = """SELECT record FROM answers WHERE task = :task AND annotator = :annotator
                 ORDER BY version"""
        rows = self._read(sql, task=task, annotator=annotator)
        return [Ranking.from_json(json.loads(row.record)) for row in rows]

    def events(self) -> list[Event]:
        """Return the whole log, oldest first."""
        rows = self._read("SELECT time, actor, kind, task, data FROM events ORDER BY id")
        return [Event(r.time, r.actor, r.kind, r.task, json.loads(r.data)) for r in rows]

    def log(
        self,
        connection: Connection,
        actor: str,
        kind: str,
        task: str | None,
        data: Mapping[str, Any],
    ) -> None:
        """Add a line to the log inside a write transaction."""
        row = {"time": self.clock(), "actor": actor, "kind": kind, "task": task}
        insert(connection, "events", {**row, "data": dumps(data)})

    def _read(self, sql: str, **values: Any) -> Sequence[Any]:
        with self.database.read() as connection:
            return run(connection, sql, **values).all()


def answer_row(record: Mapping[str, Any], version: int, now_s: float) -> dict[str, Any]:
    """Return a ranking, or another answer with its keys, as a row of `answers`.

    An answer without a time of its own gets the present one.
    """
    timed = {"time": datetime.fromtimestamp(now_s, UTC).isoformat(), **record}
    return {
        "task": record["task"],
        "annotator": record["annotator"],
        "version": version,
        "source": record["kind"],
        "record": dumps(timed),
        "form": None,
        "is_latest": 1,
        "is_skip": int(record.get("skipped") is not None),
        "is_surplus": 0,
        "is_withdrawn": 0,
        "time": now_s,
    }


def same_content(one: str, other: str) -> bool:
    """Check that two stored answers differ at most in their time, duration and order shown."""
    ignored = {"time": None, "seconds": None, "shown_order": None}
    return bool({**json.loads(one), **ignored} == {**json.loads(other), **ignored})


def gold_answers(connection: Connection, annotator: str) -> list[Any]:
    """Return a person's answers to gold tasks beside what is known of them, skips left out."""
    sql = """SELECT a.record, t.gold, t.gold_flags FROM answers a JOIN tasks t ON t.id = a.task
             WHERE a.annotator = :annotator AND a.is_latest = 1 AND a.is_skip = 0
             AND a.is_withdrawn = 0 AND t.gold IS NOT NULL AND t.lesson IS NULL"""
    return list(run(connection, sql, annotator=annotator))


def _check_gold(task: RoomTask, ranks: Mapping[str, int]) -> None:
    """Raise ValueError unless the known ranks name exactly the task's responses."""
    assert isinstance(task, RankingTask)
    try:
        Ranking(task.id, "gold", "imported", ranks).check_against(task)
    except ValueError as error:
        raise ValueError(f"gold of task '{task.id}': {error}") from None


def _submit_event(row: Mapping[str, Any]) -> dict[str, Any]:
    kind = "skip" if row["is_skip"] else "submit" if row["version"] == 1 else "amend"
    data = {"version": row["version"], "source": row["source"], "surplus": bool(row["is_surplus"])}
    head = {"time": row["time"], "actor": row["annotator"], "kind": kind, "task": row["task"]}
    return {**head, "data": dumps(data)}


def _ranking_tasks(connection: Connection, ids: Sequence[str]) -> dict[str, RankingTask]:
    rows = run_for_ids(connection, "SELECT id, record FROM tasks WHERE id IN :ids", ids)
    tasks = {row.id: RankingTask.from_json(json.loads(row.record)) for row in rows}
    for task_id in ids:
        if task_id not in tasks:
            raise ValueError(f"there is no task '{task_id}'")
    return tasks
