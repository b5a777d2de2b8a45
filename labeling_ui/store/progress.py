"""How far the work is: for one person, and for the whole room."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import delete, func, insert, select

from labeling_ui.store.statements import ANSWERED
from labeling_ui.store.store import Store
from labeling_ui.store.tables import answers, leases, settings, tasks

RECENT = 30
DAY_S = 24 * 3600.0
TRUST_S = 2.0  # how long the count of open tasks is not counted again


@dataclass(frozen=True, slots=True)
class PersonProgress:
    """Tasks answered in all and since midnight UTC, and tasks of the room still open."""

    answered: int
    today: int
    open: int

    def to_json(self) -> dict[str, int]:
        """As a JSON object."""
        return asdict(self)


class Progress:
    """Counts on one store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._open: tuple[float, int] = (-TRUST_S, 0)

    def of(self, annotator: str) -> PersonProgress:
        """How far one person is."""
        now = self.store.clock()
        asked = {"annotator": annotator, "midnight": now - now % DAY_S}
        with self.store.database.read() as connection:
            answered, today = connection.execute(ANSWERED, asked).one()
        return PersonProgress(answered, int(today), self.open_tasks())

    def open_tasks(self) -> int:
        """How many tasks still want answers, gold ones left out."""
        now = self.store.clock()
        if now - self._open[0] >= TRUST_S:
            left = select(func.count()).where(tasks.c.is_open == 1, tasks.c.gold.is_(None))
            with self.store.database.read() as connection:
                self._open = (now, connection.execute(left).scalar_one())
        return self._open[1]

    def recent(self, annotator: str) -> list[dict[str, Any]]:
        """One person's latest answers, newest first."""
        query = select(leases.c.token, tasks.c.record, answers.c.time, answers.c.is_skip)
        query = query.select_from(answers).join(tasks, tasks.c.id == answers.c.task)
        both = (leases.c.task == answers.c.task) & (leases.c.annotator == answers.c.annotator)
        query = query.join(leases, both)
        query = query.where(answers.c.annotator == annotator, answers.c.is_latest == 1)
        with self.store.database.read() as connection:
            rows = connection.execute(query.order_by(answers.c.id.desc()).limit(RECENT)).all()
        return [
            {
                "token": row.token,
                "prompt": _title(json.loads(row.record)),
                "time": row.time,
                "skipped": bool(row.is_skip),
            }
            for row in rows
        ]

    def is_paused(self) -> bool:
        """Whether the owner has stopped handing out tasks."""
        query = select(settings.c.value).where(settings.c.name == "paused")
        with self.store.database.read() as connection:
            return connection.execute(query).scalar() == "yes"

    def pause(self, owner: str, *, paused: bool) -> None:
        """Stop or go on handing out tasks; work in hand can still be sent."""
        with self.store.database.write() as connection:
            connection.execute(delete(settings).where(settings.c.name == "paused"))
            row = {"name": "paused", "value": "yes" if paused else "no"}
            connection.execute(insert(settings).values(**row))
            self.store.log(connection, owner, "paused" if paused else "resumed", None, {})


def _title(record: Mapping[str, Any]) -> str:
    """What a task is known by: its prompt, else the text or the use case it is about."""
    messages = record.get("messages") or [{}]
    asked = record.get("prompt") or messages[-1].get("content")
    return str(asked or record.get("text") or record.get("use_case") or "-")
