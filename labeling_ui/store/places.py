"""Places of tasks that answers take which came by no lease: from a file, or from a program.

Without them a task that was imported with its rankings would be handed out as if nobody had
answered it, and end with more answers than were asked for.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, insert, select, update

from labeling_ui.store.tables import leases, tasks

AT_ONCE = 500  # ids in one IN (...)


def take_places(connection: Connection, rows: Sequence[Mapping[str, Any]], now_s: float) -> None:
    """Let these rows of `answers` take a place each, and close the tasks that are full by them."""
    given = {(row["task"], row["annotator"]): row for row in rows}
    ids = sorted({task for task, _ in given})
    held = _held(connection, ids)
    fresh = [_lease(row, now_s) for key, row in given.items() if key not in held]
    if fresh:
        connection.execute(insert(leases), fresh)
    known = [_lease(row, now_s) for key, row in given.items() if key in held]
    if known:
        both = (leases.c.task == bindparam("of")) & (leases.c.annotator == bindparam("by"))
        again = [{"of": r["task"], "by": r["annotator"], "now": r["state"]} for r in known]
        connection.execute(update(leases).where(both).values(state=bindparam("now")), again)
    close_full(connection, ids)


def close_full(connection: Connection, ids: Sequence[str]) -> None:
    """Close those of the tasks that have all their answers; gold tasks stay open for everyone."""
    done = select(func.count()).where(leases.c.task == tasks.c.id, leases.c.state == "done")
    full = and_(tasks.c.overlap <= done.scalar_subquery(), tasks.c.gold.is_(None))
    for start in range(0, len(ids), AT_ONCE):
        here = tasks.c.id.in_(ids[start : start + AT_ONCE])
        connection.execute(update(tasks).where(here, full).values(is_open=0))


def _held(connection: Connection, ids: Sequence[str]) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for start in range(0, len(ids), AT_ONCE):
        some = leases.c.task.in_(ids[start : start + AT_ONCE])
        rows = connection.execute(select(leases.c.task, leases.c.annotator).where(some))
        found |= {(row.task, row.annotator) for row in rows}
    return found


def _lease(row: Mapping[str, Any], now_s: float) -> dict[str, Any]:
    record = json.loads(row["record"])
    shown = record.get("shown_order") or list(record.get("ranks", {}))
    return {
        "task": row["task"],
        "annotator": row["annotator"],
        "token": secrets.token_urlsafe(12),
        "state": "skipped" if row["is_skip"] else "done",
        "expires": now_s,
        "shown": json.dumps(shown),
        "time": now_s,
    }
