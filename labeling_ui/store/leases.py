"""Leases, drafts and the places of tasks: the statements of every hand-out, draft and submit.

A task has `overlap` places. A place is taken by an answer, or by a lease that is held and has not
run out; gold tasks have a place for everybody.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

from labeling_ui.store.database import first, insert, run, run_for_ids

TAKEN = "(state = 'done' OR state = 'held' AND expires > :now)"


class LeaseError(ValueError):
    """The token names no task of this person."""


def held_lease(connection: Connection, annotator: str) -> Row[Any] | None:
    """Return the lease that this person works on, if any."""
    sql = """SELECT * FROM leases WHERE annotator = :annotator AND state = 'held'
             ORDER BY time DESC LIMIT 1"""
    return run(connection, sql, annotator=annotator).first()


def lease_of_token(connection: Connection, annotator: str, token: str) -> Row[Any]:
    """Return this person's lease of that token; LeaseError if there is none."""
    lease = first(connection, "leases", token=token, annotator=annotator)
    if lease is None:
        raise LeaseError("this task is not one of yours")
    return lease


def next_task(
    connection: Connection,
    annotator: str,
    now_s: float,
    *,
    gold: bool = False,
    practice: bool = False,
    category: str | None = None,
) -> Row[Any] | None:
    """Return the first open task that is new to this person, by priority, urgency, then age.

    Gold and practice tasks come only where asked for; others need a free place.
    """
    free = f"overlap > (SELECT count(*) FROM leases WHERE task = tasks.id AND {TAKEN})"
    wanted = "gold IS NOT NULL AND lesson IS NULL" if gold else f"gold IS NULL AND {free}"
    wanted = "lesson IS NOT NULL" if practice else wanted
    values = {"annotator": annotator} | ({} if gold or practice else {"now": now_s})
    if category is not None:
        wanted += " AND category = :category"
        values["category"] = category
    sql = f"""SELECT * FROM tasks WHERE is_open = 1 AND {wanted}
              AND id NOT IN (SELECT task FROM leases WHERE annotator = :annotator)
              ORDER BY priority DESC, urgency DESC, position LIMIT 1"""
    return run(connection, sql, **values).first()


def has_place(connection: Connection, annotator: str, task: str, now_s: float) -> bool:
    """Check that a place is left for this person, beside those that others have taken."""
    sql = f"""SELECT gold IS NOT NULL OR overlap > (
                SELECT count(*) FROM leases
                WHERE task = :task AND annotator <> :annotator AND {TAKEN})
              FROM tasks WHERE id = :task"""
    return bool(run(connection, sql, task=task, annotator=annotator, now=now_s).scalar())


def give_back(connection: Connection, now_s: float, annotator: str) -> list[str]:
    """Let a person's leases run out now; return their tasks. They stay theirs while nobody asks."""
    held = "annotator = :annotator AND state = 'held' AND expires > :now"
    rows = run(connection, f"SELECT task FROM leases WHERE {held}", annotator=annotator, now=now_s)
    tasks = [row.task for row in rows]
    sql = f"UPDATE leases SET expires = :now WHERE {held}"
    run(connection, sql, annotator=annotator, now=now_s)
    return tasks


def take_idle(
    connection: Connection, annotator: str, now_s: float, renewed_until: float
) -> Row[Any] | None:
    """End the lease that is longest without a sign of work, on a task that is new to this person.

    Return the row of that task. Only leases that run out by `renewed_until` count as idle.
    """
    sql = """SELECT t.*, l.token FROM tasks t JOIN leases l ON l.task = t.id
             WHERE t.is_open = 1 AND t.gold IS NULL AND l.state = 'held'
             AND l.expires > :now AND l.expires <= :until
             AND t.id NOT IN (SELECT task FROM leases WHERE annotator = :annotator)
             ORDER BY l.expires LIMIT 1"""
    values = {"annotator": annotator, "now": now_s, "until": renewed_until}
    task = run(connection, sql, **values).first()
    if task is not None:
        sql = "UPDATE leases SET expires = :now WHERE token = :token"
        run(connection, sql, now=now_s, token=task.token)
    return task


def hold(connection: Connection, token: str, end: float) -> None:
    """Renew a lease until `end`."""
    sql = "UPDATE leases SET state = 'held', expires = :end WHERE token = :token"
    run(connection, sql, token=token, end=end)


def set_state(connection: Connection, token: str, state: str) -> None:
    """Mark a lease as done, skipped or expired."""
    sql = "UPDATE leases SET state = :state WHERE token = :token"
    run(connection, sql, token=token, state=state)


def reopen_task(connection: Connection, task: str) -> None:
    """Hand a task out again, unless it is an adjudication, which is taken by name only."""
    sql = "UPDATE tasks SET is_open = 1 WHERE id = :task AND kind <> 'adjudication'"
    run(connection, sql, task=task)


def close_full(connection: Connection, ids: Sequence[str]) -> None:
    """Close those of the tasks that have all their answers; gold tasks stay open for everyone."""
    sql = """UPDATE tasks SET is_open = 0 WHERE id IN :ids AND gold IS NULL AND overlap <= (
               SELECT count(*) FROM leases WHERE task = tasks.id AND state = 'done')"""
    run_for_ids(connection, sql, ids)


def take_places(connection: Connection, rows: Sequence[Mapping[str, Any]], now_s: float) -> None:
    """Let rows of `answers` that came by no lease, from a file or a program, take a place each.

    Without it an imported task would be handed out as if nobody had answered it.
    """
    answers = {(row["task"], row["annotator"]): row for row in rows}
    ids = sorted({task for task, _ in answers})
    sql = "SELECT task, annotator FROM leases WHERE task IN :ids"
    leased = {(row.task, row.annotator) for row in run_for_ids(connection, sql, ids)}
    leases = []
    for row in answers.values():
        record = json.loads(row["record"])
        order = record.get("shown_order") or list(record.get("ranks", {}))
        state = "skipped" if row["is_skip"] else "done"
        leases.append(lease_row(row["task"], row["annotator"], state, order, now_s))
    new = [row for row in leases if (row["task"], row["annotator"]) not in leased]
    insert(connection, "leases", *new)
    known = [row for row in leases if (row["task"], row["annotator"]) in leased]
    if known:
        both = "task = :task AND annotator = :annotator"
        statement = text(f"UPDATE leases SET state = :state WHERE {both}")
        connection.execute(statement, known)
    close_full(connection, ids)


def lease_row(
    task: str, annotator: str, state: str, order: Sequence[str], now_s: float
) -> dict[str, Any]:
    """Return a row of `leases`, its responses shown in this order, that runs out at once."""
    return {
        "task": task,
        "annotator": annotator,
        "token": secrets.token_urlsafe(12),
        "state": state,
        "expires": now_s,
        "shown": json.dumps(list(order)),
        "time": now_s,
    }
