"""Withdrawal of a person's answers, and leases that an owner releases. Nothing is deleted.

A withdrawn answer counts nowhere, and its task is handed out again, to others. Restored, it takes
its place again if nobody else has it by then, and is surplus otherwise: no task ever has more
answers than people it is for.
"""

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from labeling_ui.store import leases
from labeling_ui.store.database import run
from labeling_ui.store.progress import title
from labeling_ui.store.store import Store
from reward_models.records import JUDGE


@dataclass(frozen=True, slots=True)
class Held:
    """A task that a person holds, and for how long: idle is without a sign of work."""

    annotator: str
    task: str
    prompt: str
    held_s: float
    idle_s: float
    left_s: float


def withdraw(store: Store, annotator: str, by: str) -> int:
    """Take a person's answers out of the count, release what they hold; return how many it were.

    ValueError if this person has none.
    """
    with store.database.write() as connection:
        tasks = _tasks(connection, annotator, withdrawn=0)
        if not tasks:
            raise ValueError(f"'{annotator}' has no answer that counts")
        sql = """UPDATE answers SET is_withdrawn = 1
                 WHERE annotator = :annotator AND is_latest = 1 AND is_skip = 0"""
        run(connection, sql, annotator=annotator)
        for task in tasks:
            sql = "UPDATE leases SET state = 'withdrawn' WHERE task = :task AND annotator = :who"
            run(connection, sql, task=task, who=annotator)
            leases.reopen_task(connection, task)
        leases.close_full(connection, tasks)
        leases.give_back(connection, store.clock(), annotator)
        store.log(connection, by, "withdrew", None, {"account": annotator, "tasks": tasks})
    return len(tasks)


def restore(store: Store, annotator: str, by: str) -> tuple[int, int]:
    """Count a person's withdrawn answers again; return how many it were, and how many are surplus.

    ValueError if nothing of this person's is withdrawn.
    """
    now_s, surplus = store.clock(), []
    with store.database.write() as connection:
        tasks = _tasks(connection, annotator, withdrawn=1)
        if not tasks:
            raise ValueError(f"nothing of '{annotator}' is withdrawn")
        for task in tasks:
            key = {"task": task, "annotator": annotator}
            answer = """UPDATE answers SET is_withdrawn = 0, is_surplus = :surplus
                        WHERE task = :task AND annotator = :annotator AND is_latest = 1"""
            lease = "UPDATE leases SET state = :state WHERE task = :task AND annotator = :annotator"
            is_free = annotator.startswith(JUDGE) or leases.has_place(
                connection, annotator, task, now_s
            )
            run(connection, answer, surplus=int(not is_free), **key)
            run(connection, lease, state="done" if is_free else "expired", **key)
            surplus += [] if is_free else [task]
        leases.close_full(connection, tasks)
        data = {"account": annotator, "tasks": tasks, "surplus": surplus}
        store.log(connection, by, "restored", None, data)
    return len(tasks), len(surplus)


def answers_by_person(store: Store, *, withdrawn: bool) -> dict[str, int]:
    """Count the answers of everybody who has any: those withdrawn, or those not."""
    sql = """SELECT annotator, count(*) AS number FROM answers WHERE is_latest = 1
             AND is_skip = 0 AND is_withdrawn = :withdrawn GROUP BY annotator"""
    with store.database.read() as connection:
        rows = run(connection, sql, withdrawn=int(withdrawn))
        return {row.annotator: row.number for row in rows}


def held(store: Store) -> list[Held]:
    """Return the leases that keep a task from others now, the longest idle first."""
    now_s = store.clock()
    sql = """SELECT l.annotator, l.task, l.time, l.expires, t.record, d.time AS saved
             FROM leases l JOIN tasks t ON t.id = l.task
             LEFT JOIN drafts d ON d.task = l.task AND d.annotator = l.annotator
             WHERE l.state = 'held' AND l.expires > :now AND t.gold IS NULL"""
    with store.database.read() as connection:
        rows = run(connection, sql, now=now_s).all()
    return sorted((_held(row, now_s) for row in rows), key=lambda one: -one.idle_s)


def release(store: Store, annotator: str, by: str) -> int:
    """Give the tasks back that a person holds; return how many. Their drafts stay.

    Who works on nevertheless takes the place again if it is still free.
    """
    with store.database.write() as connection:
        tasks = leases.give_back(connection, store.clock(), annotator)
        if not tasks:
            raise ValueError(f"'{annotator}' holds no task")
        store.log(connection, by, "released", None, {"account": annotator, "tasks": tasks})
    return len(tasks)


def _tasks(connection: Connection, annotator: str, *, withdrawn: int) -> list[str]:
    sql = """SELECT task FROM answers WHERE annotator = :annotator AND is_latest = 1
             AND is_skip = 0 AND is_withdrawn = :withdrawn ORDER BY id"""
    rows = run(connection, sql, annotator=annotator, withdrawn=withdrawn)
    return [row.task for row in rows]


def _held(row: Any, now_s: float) -> Held:
    prompt = title(json.loads(row.record))
    times = now_s - row.time, now_s - (row.saved or row.time), row.expires - now_s
    return Held(row.annotator, row.task, prompt, *times)
