"""Who works on which task: leases with a time limit, drafts, and answers that come in for them.

A task is to be answered by `overlap` people. A person holds it by a lease; while the lease lives
nobody can have the place. A lease that ran out gives the place back, but what its holder sends
later is still kept: in the place if it is free again, else beside the count, as surplus.
"""

import json
import random
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, and_, delete, func, insert, or_, select, update

from labeling_ui.choosing import Mixing, choose, screened, taken
from labeling_ui.places import close_full
from labeling_ui.rows import answer_row, dumps, says_the_same
from labeling_ui.screening import verdict_of
from labeling_ui.store import Store
from labeling_ui.tables import answers, drafts, leases, tasks

Outcome = Literal["stored", "again", "surplus"]


class LeaseError(ValueError):
    """The token names no task of this person."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One person's hold on one task. `shown` are the response ids in the order this person sees."""

    token: str
    task: str
    kind: str
    record: Mapping[str, Any]
    shown: tuple[str, ...]
    state: str
    draft: Mapping[str, Any] | None
    revision: int


class Assignment:
    """Hands out tasks and takes answers in."""

    def __init__(
        self,
        store: Store,
        *,
        rng: random.Random,
        lease_s: float = 1800,
        mixing: Mixing | None = None,
    ) -> None:
        """`rng` shuffles what each person sees; `lease_s` is how long a hold lasts unrenewed."""
        self.store = store
        self.rng = rng
        self.lease_s = lease_s
        self.mixing = mixing or Mixing()

    def next_task(self, annotator: str) -> Lease | None:
        """The task this person holds, else a new one; None when nothing is left for them."""
        now = self.store.clock()
        with self.store.database.write() as connection:
            held = connection.execute(_held_by(annotator)).first()
            if held is not None and not self._renew(connection, held, now):
                held = None
            if held is None:
                task = choose(connection, annotator, now, self.mixing, self.rng)
                if task is None:
                    return None
                self._take(connection, annotator, task, now)
                held = connection.execute(_held_by(annotator)).first()
            assert held is not None
            return _lease(connection, held)

    def is_screened_out(self, annotator: str) -> bool:
        """Whether gold tasks showed that this person is to be handed out nothing more."""
        with self.store.database.read() as connection:
            return verdict_of(connection, annotator) == "failed"

    def look_up(self, annotator: str, token: str) -> Lease:
        """This person's lease of that token; LeaseError if there is none."""
        with self.store.database.read() as connection:
            return _lease(connection, _by_token(connection, annotator, token))

    def reopen(self, annotator: str, token: str) -> Lease:
        """Open an earlier task of this person again, to amend it or to take back a skip."""
        now = self.store.clock()
        with self.store.database.write() as connection:
            row = _by_token(connection, annotator, token)
            if row.state in ("skipped", "expired") and not self._renew(connection, row, now):
                raise LeaseError("others have taken this task meanwhile")
            return _lease(connection, _by_token(connection, annotator, token))

    def save_draft(
        self, annotator: str, token: str, revision: int, writer: str, body: Mapping[str, Any]
    ) -> bool:
        """Keep unfinished work and renew the lease; False if another writer was here since.

        An older revision than the stored one changes nothing. `writer` is the browser tab.
        """
        now = self.store.clock()
        with self.store.database.write() as connection:
            row = _by_token(connection, annotator, token)
            if row.state in ("held", "expired"):
                self._renew(connection, row, now)
            mine = and_(drafts.c.task == row.task, drafts.c.annotator == annotator)
            stored = connection.execute(select(drafts).where(mine)).first()
            if stored is not None and stored.revision >= revision:
                return bool(stored.writer == writer)
            values = {"revision": revision, "writer": writer, "body": dumps(body), "time": now}
            if stored is None:
                key = {"task": row.task, "annotator": annotator}
                connection.execute(insert(drafts).values(**key, **values))
            else:
                connection.execute(update(drafts).where(mine).values(**values))
        return True

    def submit(self, annotator: str, token: str, form: str, record: Mapping[str, Any]) -> Outcome:
        """Take an answer in for good. `form` names this filled-in form, however often it is sent.

        `record` has the keys of a ranking (task, annotator, kind, skipped, ...), already checked.
        """
        now = self.store.clock()
        name = f"{annotator}/{form}"
        with self.store.database.write() as connection:
            lease = _by_token(connection, annotator, token)
            assert (record["task"], record["annotator"]) == (lease.task, annotator)
            mine = and_(answers.c.task == lease.task, answers.c.annotator == annotator)
            before = connection.execute(
                select(answers).where(mine, answers.c.is_latest == 1)
            ).first()
            known = connection.execute(select(answers.c.id).where(answers.c.form == name)).first()
            version = 1 if before is None else before.version + 1
            row = {**answer_row(record, version, now), "form": name}
            if known is not None or (before and says_the_same(before.record, row["record"])):
                return "again"
            counted = before is not None and not before.is_skip and not before.is_surplus
            surplus = (
                not row["is_skip"] and not counted and not self._is_free(connection, lease, now)
            )
            row["is_surplus"] = int(surplus)
            self.store.append(connection, [row])
            self._finish(connection, lease, "skipped" if row["is_skip"] else "done", surplus)
            if self.mixing.screening is not None:
                screened(connection, annotator, self.mixing.screening, now)
        return "surplus" if surplus else "stored"

    def _finish(self, connection: Connection, lease: Row[Any], state: str, surplus: bool) -> None:
        """Close the lease, drop its draft, and close the task once it has all its answers."""
        values = {"state": "expired" if surplus else state}
        connection.execute(update(leases).where(leases.c.token == lease.token).values(**values))
        of_both = and_(drafts.c.task == lease.task, drafts.c.annotator == lease.annotator)
        connection.execute(delete(drafts).where(of_both))
        if state == "skipped":  # somebody else is asked, unless the task is full without it
            here = tasks.c.id == lease.task
            connection.execute(update(tasks).where(here).values(is_open=1))
        close_full(connection, [lease.task])

    def _renew(self, connection: Connection, lease: Row[Any], now: float) -> bool:
        """Hold a place for the lease if there is one; else mark it expired."""
        free = self._is_free(connection, lease, now)
        values = {"state": "held", "expires": now + self.lease_s} if free else {"state": "expired"}
        connection.execute(update(leases).where(leases.c.token == lease.token).values(**values))
        return free

    def _is_free(self, connection: Connection, lease: Row[Any], now: float) -> bool:
        """Whether a place is left for this lease, others' living leases and answers counted."""
        others = select(func.count()).where(
            leases.c.task == lease.task, leases.c.annotator != lease.annotator, taken(now)
        )
        query = select(or_(tasks.c.gold.is_not(None), tasks.c.overlap > others.scalar_subquery()))
        return bool(connection.execute(query.where(tasks.c.id == lease.task)).scalar())

    def _take(self, connection: Connection, annotator: str, task: Row[Any], now: float) -> None:
        shown = [response["id"] for response in json.loads(task.record).get("responses", [])]
        self.rng.shuffle(shown)
        row = {"task": task.id, "annotator": annotator, "token": secrets.token_urlsafe(12)}
        when = {"state": "held", "expires": now + self.lease_s, "time": now}
        connection.execute(insert(leases).values(**row, **when, shown=json.dumps(shown)))
        self.store.log(connection, annotator, "lease", task.id, {})


def _held_by(annotator: str) -> Select[Any]:
    mine = select(leases).where(leases.c.annotator == annotator, leases.c.state == "held")
    return mine.order_by(leases.c.time.desc()).limit(1)


def _by_token(connection: Connection, annotator: str, token: str) -> Row[Any]:
    mine = (leases.c.token == token) & (leases.c.annotator == annotator)
    found = connection.execute(select(leases).where(mine)).first()
    if found is None:
        raise LeaseError("this task is not one of yours")
    return found


def _lease(connection: Connection, row: Row[Any]) -> Lease:
    task = connection.execute(select(tasks).where(tasks.c.id == row.task)).one()
    mine = (drafts.c.task == row.task) & (drafts.c.annotator == row.annotator)
    draft = connection.execute(select(drafts).where(mine)).first()
    return Lease(
        token=row.token,
        task=row.task,
        kind=task.kind,
        record=json.loads(task.record),
        shown=tuple(json.loads(row.shown)),
        state=row.state,
        draft=None if draft is None else json.loads(draft.body),
        revision=0 if draft is None else draft.revision,
    )
