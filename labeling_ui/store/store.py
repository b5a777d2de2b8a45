"""Where rankings live: tasks, every version of every answer, and a log that only grows.

People and simulated annotators write through the same `submit`. A submit that returned is on the
disk; sent again it changes nothing. An amended answer is a new version beside the old one.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from labeling_ui.store.database import Database
from labeling_ui.store.places import AT_ONCE, take_places
from labeling_ui.store.rows import (
    answer_row,
    check_gold,
    dumps,
    says_the_same,
    submit_event,
    task_row,
)
from labeling_ui.store.tables import answers, events, tasks
from labeling_ui.tasks.screening import record_verdict
from reward_models.records import Kind, Ranking, RankingTask


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the log: who did what to which task. `time` is seconds since 1970, UTC."""

    time: float
    actor: str
    kind: str
    task: str | None
    data: Mapping[str, Any]


class Store:
    """Ranking tasks and rankings in one database; safe to share between threads and processes."""

    def __init__(self, where: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open or create the store at a path (SQLite) or a SQLAlchemy URL."""
        self.database = Database(where)
        self.where = str(where)
        self.clock = clock

    def close(self) -> None:
        """Give up all connections."""
        self.database.close()

    def backup(self, path: Path) -> None:
        """Write the store to a new file while it is in use; see `Database.backup`."""
        self.database.backup(path)

    def add_tasks(
        self,
        new: Sequence[RankingTask],
        *,
        overlap: int = 1,
        priority: int = 0,
        gold: Mapping[str, Mapping[str, int]] | None = None,
        gold_flags: Mapping[str, Mapping[str, Mapping[str, bool]]] | None = None,
    ) -> int:
        """Add tasks that `overlap` people each are to rank; return how many were new.

        `gold` gives the known ranks of some of them by task id, and `gold_flags` known answers to
        flags of their responses. A task that is already there is left alone; ValueError if its text
        differs, because rankings of it would change meaning.
        """
        if overlap < 1:
            raise ValueError(f"overlap is {overlap}, expected at least 1")
        gold = gold or {}
        for task in (task for task in new if task.id in gold):
            check_gold(task, gold[task.id])
        with self.database.write() as connection:
            known = _records(connection, [task.id for task in new])
            last = connection.execute(select(func.max(tasks.c.position))).scalar() or 0
            rows: dict[str, dict[str, Any]] = {}
            for task in new:
                record = dumps(task.to_json())
                before = rows[task.id]["record"] if task.id in rows else known.get(task.id, record)
                if json.loads(before) != json.loads(record):
                    raise ValueError(f"task '{task.id}' is already there with another text")
                if task.id in known or task.id in rows:
                    continue
                right = dumps(dict(gold[task.id])) if task.id in gold else None
                row = task_row(task, record, last + 1 + len(rows), overlap, priority, right)
                flags = (gold_flags or {}).get(task.id)
                rows[task.id] = {**row, "gold_flags": dumps(flags) if flags else None}
            if rows:
                connection.execute(insert(tasks), list(rows.values()))
                self.log(connection, "store", "tasks added", None, {"count": len(rows)})
        return len(rows)

    def tasks(self) -> list[RankingTask]:
        """All ranking tasks in order of arrival."""
        query = select(tasks.c.record).where(tasks.c.kind == "ranking").order_by(tasks.c.position)
        with self.database.read() as connection:
            found = connection.execute(query).scalars().all()
        return [RankingTask.from_json(json.loads(record)) for record in found]

    def task(self, task_id: str) -> RankingTask:
        """One task; ValueError if there is none of that id."""
        with self.database.read() as connection:
            return _tasks_of(connection, [task_id])[task_id]

    def gold(self) -> dict[str, dict[str, int]]:
        """The known ranks of the gold tasks, by task id."""
        query = select(tasks.c.id, tasks.c.gold).where(tasks.c.gold.is_not(None))
        with self.database.read() as connection:
            return {row.id: json.loads(row.gold) for row in connection.execute(query)}

    def submit(self, ranking: Ranking) -> bool:
        """Store a ranking for good; False if the annotator's latest answer says the same."""
        return self.submit_all([ranking]) == 1

    def submit_all(self, rankings: Iterable[Ranking]) -> int:
        """Store many rankings in one transaction, all or none; return how many were new.

        They take places of their tasks, as answers to leases do. ValueError if a task is unknown or
        a ranking leaves out one of its responses.
        """
        batch = list(rankings)
        with self.database.write() as connection:
            ids = sorted({ranking.task for ranking in batch})
            known = _tasks_of(connection, ids)
            latest = _latest(connection, ids)
            rows = []
            for ranking in batch:
                ranking.check_against(known[ranking.task])
                version, before = latest.get((ranking.task, ranking.annotator), (0, None))
                row = answer_row(ranking.to_json(), version + 1, self.clock())
                if before is not None and says_the_same(before, row["record"]):
                    continue
                latest[ranking.task, ranking.annotator] = (version + 1, row["record"])
                rows.append(row)
            self.append(connection, rows)
            take_places(connection, rows, self.clock())
        return len(rows)

    def append(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows of `answers` within a write transaction; older versions are no longer latest."""
        if not rows:
            return
        newest = {(row["task"], row["annotator"]): row["version"] for row in rows}
        for task, annotator in (key for key, version in newest.items() if version > 1):
            of_both = (answers.c.task == task) & (answers.c.annotator == annotator)
            connection.execute(update(answers).where(of_both).values(is_latest=0))
        fresh = [
            {**row, "is_latest": int(newest[row["task"], row["annotator"]] == row["version"])}
            for row in rows
        ]
        connection.execute(insert(answers), fresh)
        connection.execute(insert(events), [submit_event(row) for row in fresh])

    def rankings(self, *, source: Kind | None = None, skipped: bool = False) -> list[Ranking]:
        """The latest ranking of each annotator on each task, oldest first.

        `source` keeps human, simulated or imported ones. Skips are left out unless asked for;
        answers beyond a task's overlap are kept in the history but never counted here.
        """
        query = select(answers.c.record).join(tasks, tasks.c.id == answers.c.task)
        query = query.where(tasks.c.kind == "ranking", answers.c.is_latest == 1)
        query = query.where(answers.c.is_surplus == 0).order_by(answers.c.id)
        if source is not None:
            query = query.where(answers.c.source == source)
        if not skipped:
            query = query.where(answers.c.is_skip == 0)
        with self.database.read() as connection:
            found = connection.execute(query).scalars().all()
        return [Ranking.from_json(json.loads(record)) for record in found]

    def history(self, task: str, annotator: str) -> list[Ranking]:
        """Every version of one annotator's answer to one task, oldest first."""
        query = select(answers.c.record).order_by(answers.c.version)
        query = query.where(answers.c.task == task, answers.c.annotator == annotator)
        with self.database.read() as connection:
            found = connection.execute(query).scalars().all()
        return [Ranking.from_json(json.loads(record)) for record in found]

    def events(self) -> list[Event]:
        """The whole log, oldest first."""
        with self.database.read() as connection:
            rows = connection.execute(select(events).order_by(events.c.id)).all()
        return [Event(r.time, r.actor, r.kind, r.task, json.loads(r.data)) for r in rows]

    def admit(self, annotator: str, owner: str) -> None:
        """Let a person work on whatever the screening said."""
        with self.database.write() as connection:
            record_verdict(connection, annotator, "admitted", {"by": owner}, self.clock())
            self.log(connection, owner, "admitted", None, {"account": annotator})

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
        connection.execute(insert(events), [{**row, "data": dumps(data)}])


def kinds_and_records(connection: Connection, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Kind and record of the tasks of these ids that are there."""
    found: dict[str, tuple[str, str]] = {}
    for start in range(0, len(ids), AT_ONCE):
        some = ids[start : start + AT_ONCE]
        query = select(tasks.c.id, tasks.c.kind, tasks.c.record).where(tasks.c.id.in_(some))
        found.update({row.id: (row.kind, row.record) for row in connection.execute(query)})
    return found


def _records(connection: Connection, ids: Sequence[str]) -> dict[str, str]:
    both = kinds_and_records(connection, ids)
    return {name: record for name, (_, record) in both.items()}


def _tasks_of(connection: Connection, ids: Sequence[str]) -> dict[str, RankingTask]:
    found = _records(connection, ids)
    for task_id in ids:
        if task_id not in found:
            raise ValueError(f"there is no task '{task_id}'")
    return {name: RankingTask.from_json(json.loads(record)) for name, record in found.items()}


def _latest(connection: Connection, ids: Sequence[str]) -> dict[tuple[str, str], tuple[int, str]]:
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for start in range(0, len(ids), AT_ONCE):
        some = ids[start : start + AT_ONCE]
        query = select(answers.c.task, answers.c.annotator, answers.c.version, answers.c.record)
        for row in connection.execute(
            query.where(answers.c.task.in_(some), answers.c.is_latest == 1)
        ):
            found[row.task, row.annotator] = (row.version, row.record)
    return found
