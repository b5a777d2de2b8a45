"""Progress: of one person, and of the whole room."""

import json
from collections.abc import Mapping
from typing import Any

from labeling_ui.store.database import delete, first, insert, run
from labeling_ui.store.store import Store

RECENT = 30
DAY_S = 24 * 3600.0
CACHE_S = 2.0  # how long the open tasks are not counted again


class Progress:
    """Counts of one store, and the switch that pauses its room."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._open: tuple[float, int] = (-CACHE_S, 0)

    def of(self, annotator: str) -> dict[str, int]:
        """Count a person's answers, in all and since midnight UTC, and the room's open tasks."""
        now_s = self.store.clock()
        sql = """SELECT count(*) AS answered,
                   coalesce(sum(CASE WHEN time >= :midnight THEN 1 ELSE 0 END), 0) AS today
                 FROM answers WHERE annotator = :annotator AND is_latest = 1 AND is_skip = 0
                 AND is_withdrawn = 0"""
        with self.store.database.read() as connection:
            row = run(connection, sql, annotator=annotator, midnight=now_s - now_s % DAY_S).one()
        return {"answered": row.answered, "today": int(row.today), "open": self.open_tasks()}

    def open_tasks(self) -> int:
        """Count the tasks that still want answers, gold ones left out."""
        now_s = self.store.clock()
        if now_s - self._open[0] >= CACHE_S:
            sql = "SELECT count(*) FROM tasks WHERE is_open = 1 AND gold IS NULL"
            with self.store.database.read() as connection:
                self._open = (now_s, run(connection, sql).scalar_one())
        return self._open[1]

    def recent(self, annotator: str) -> list[dict[str, Any]]:
        """Return one person's latest answers, newest first."""
        sql = """SELECT l.token, t.record, a.time, a.is_skip FROM answers a
                 JOIN tasks t ON t.id = a.task
                 JOIN leases l ON l.task = a.task AND l.annotator = a.annotator
                 WHERE a.annotator = :annotator AND a.is_latest = 1 AND a.is_withdrawn = 0
                 ORDER BY a.id DESC LIMIT :recent"""
        with self.store.database.read() as connection:
            rows = run(connection, sql, annotator=annotator, recent=RECENT).all()
        return [
            {
                "token": row.token,
                "prompt": title(json.loads(row.record)),
                "time": row.time,
                "skipped": bool(row.is_skip),
            }
            for row in rows
        ]

    def is_paused(self) -> bool:
        """Check that the owner has stopped handing out tasks."""
        with self.store.database.read() as connection:
            return first(connection, "settings", name="paused", value="yes") is not None

    def pause(self, owner: str, *, paused: bool) -> None:
        """Stop or resume handing out tasks; work in hand can still be sent."""
        with self.store.database.write() as connection:
            delete(connection, "settings", name="paused")
            insert(connection, "settings", {"name": "paused", "value": "yes" if paused else "no"})
            self.store.log(connection, owner, "paused" if paused else "resumed", None, {})


def title(record: Mapping[str, Any]) -> str:
    """Return the prompt of a task's record, else the text or the use case that it is about."""
    messages = record.get("messages") or [{}]
    prompt = record.get("prompt") or messages[-1].get("content")
    return str(prompt or record.get("text") or record.get("use_case") or "-")
