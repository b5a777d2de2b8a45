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

from sqlalchemy import Connection, Row, insert, update

from labeling_ui.store import statements as sql
from labeling_ui.store.places import close_full
from labeling_ui.store.rows import answer_row, dumps, says_the_same
from labeling_ui.store.store import Store
from labeling_ui.store.tables import drafts, leases, tasks
from labeling_ui.tasks.queue import Mixing, choose, screened
from labeling_ui.tasks.screening import verdict_of

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
        with self.store.database.write(durable=False) as connection:  # a lost lease is no work lost
            held = connection.execute(sql.HELD_BY, {"annotator": annotator}).first()
            if held is not None and not self._renew(connection, held, now):
                held = None
            if held is None:
                task = choose(connection, annotator, now, self.mixing, self.rng)
                if task is None:
                    return None
                self._take(connection, annotator, task, now)
                held = connection.execute(sql.HELD_BY, {"annotator": annotator}).first()
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
            key = {"task": row.task, "annotator": annotator}
            stored = connection.execute(sql.DRAFT, key).first()
            if stored is not None and stored.revision >= revision:
                return bool(stored.writer == writer)
            values = {"revision": revision, "writer": writer, "body": dumps(body), "time": now}
            if stored is not None:
                connection.execute(sql.DROP_DRAFT, key)
            connection.execute(insert(drafts), [{**key, **values}])
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
            both = {"task": lease.task, "annotator": annotator}
            before = connection.execute(sql.LATEST_ANSWER, both).first()
            known = connection.execute(sql.ANSWER_OF_FORM, {"form": name}).first()
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
        ended = {"of": lease.token, "to": "expired" if surplus else state}
        connection.execute(sql.SET_STATE, ended)
        connection.execute(sql.DROP_DRAFT, {"task": lease.task, "annotator": lease.annotator})
        if state == "skipped":  # somebody else is asked, unless the task is full without it
            here = (tasks.c.id == lease.task) & (tasks.c.kind != "adjudication")
            connection.execute(update(tasks).where(here).values(is_open=1))
        close_full(connection, [lease.task])

    def _renew(self, connection: Connection, lease: Row[Any], now: float) -> bool:
        """Hold a place for the lease if there is one; else mark it expired."""
        free = self._is_free(connection, lease, now)
        if free:
            connection.execute(sql.HOLD, {"of": lease.token, "until": now + self.lease_s})
        else:
            connection.execute(sql.SET_STATE, {"of": lease.token, "to": "expired"})
        return free

    def _is_free(self, connection: Connection, lease: Row[Any], now: float) -> bool:
        """Whether a place is left for this lease, others' living leases and answers counted."""
        known = {"task": lease.task, "annotator": lease.annotator, "now": now}
        return bool(connection.execute(sql.IS_FREE, known).scalar())

    def _take(self, connection: Connection, annotator: str, task: Row[Any], now: float) -> None:
        shown = [response["id"] for response in json.loads(task.record).get("responses", [])]
        self.rng.shuffle(shown)
        row = {"task": task.id, "annotator": annotator, "token": secrets.token_urlsafe(12)}
        when = {"state": "held", "expires": now + self.lease_s, "time": now}
        connection.execute(insert(leases), [{**row, **when, "shown": json.dumps(shown)}])
        self.store.log(connection, annotator, "lease", task.id, {})


def _by_token(connection: Connection, annotator: str, token: str) -> Row[Any]:
    known = {"token": token, "annotator": annotator}
    found = connection.execute(sql.LEASE_OF_TOKEN, known).first()
    if found is None:
        raise LeaseError("this task is not one of yours")
    return found


def _lease(connection: Connection, row: Row[Any]) -> Lease:
    both = {"task": row.task, "annotator": row.annotator}
    task = connection.execute(sql.TASK, {"task": row.task}).one()
    draft = connection.execute(sql.DRAFT, both).first()
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
