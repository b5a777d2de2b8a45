"""Assignment of tasks to people: leases with a time limit, drafts, and answers that come in.

A task is to be answered by `overlap` people. A person holds it by a lease; while the lease lives
nobody else can have the place. A lease that ran out gives the place back, but what its holder
sends later is still stored: in the place if it is free again, else beside the count, as surplus.
Where nothing else is left, a lease without a sign of work for five minutes goes to whoever asks.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Connection, Row

from labeling_ui.store import leases
from labeling_ui.store.accounts import verdict_of
from labeling_ui.store.database import delete, dumps, first, insert
from labeling_ui.store.leases import LeaseError
from labeling_ui.store.store import Store, answer_row, same_content
from labeling_ui.tasks.overlap import AdaptiveOverlap, widen
from labeling_ui.tasks.queue import Mixing, choose, screen_when_done

IDLE_S = 300.0  # without a sign of work, after which a lease may go to another
Outcome = Literal["stored", "again", "surplus"]


@dataclass(frozen=True, slots=True)
class Lease:
    """One person's hold on one task, with the response ids in the order this person sees."""

    token: str
    task: str
    kind: str
    record: Mapping[str, Any]
    shown_order: tuple[str, ...]
    state: str
    draft: Mapping[str, Any] | None
    revision: int


@dataclass(frozen=True)
class Assignment:
    """The service that hands out tasks and takes answers in.

    `rng` shuffles what each person sees; `lease_s` is how long a hold lasts unrenewed.
    """

    store: Store
    rng: random.Random
    lease_s: float = 1800
    mixing: Mixing = field(default_factory=Mixing)
    overlap: AdaptiveOverlap | None = None

    def next_task(self, annotator: str) -> Lease | None:
        """Return the task this person holds, else a new one; None when nothing is left for them."""
        now_s = self.store.clock()
        with self.store.database.write(durable=False) as connection:  # a lost lease is no work lost
            held = leases.held_lease(connection, annotator)
            if held is not None and self._renew(connection, held, now_s):
                return _lease(connection, held)
            task = choose(connection, annotator, now_s, self.mixing, self.rng)
            if task is None and not self._is_out(connection, annotator):
                until = now_s + self.lease_s - IDLE_S
                task = leases.take_idle(connection, annotator, now_s, until)
            if task is None:
                return None
            return _lease(connection, self._take(connection, annotator, task, now_s))

    def take(self, annotator: str, task_id: str) -> Lease:
        """Lease this person this task before all others; LeaseError if there is no place in it."""
        now_s = self.store.clock()
        with self.store.database.write() as connection:
            task = first(connection, "tasks", id=task_id)
            if task is None:
                raise LeaseError("there is no such task")
            earlier = first(connection, "leases", task=task_id, annotator=annotator)
            if earlier is None:
                if not leases.has_place(connection, annotator, task_id, now_s):
                    raise LeaseError("others have taken this task meanwhile")
                return _lease(connection, self._take(connection, annotator, task, now_s))
        return self.reopen(annotator, earlier.token)

    def look_up(self, annotator: str, token: str) -> Lease:
        """Return this person's lease of that token; LeaseError if there is none."""
        with self.store.database.read() as connection:
            return _lease(connection, leases.lease_of_token(connection, annotator, token))

    def reopen(self, annotator: str, token: str) -> Lease:
        """Open an earlier task of this person again, to amend it or to take back a skip."""
        now_s = self.store.clock()
        with self.store.database.write() as connection:
            row = leases.lease_of_token(connection, annotator, token)
            if row.state == "withdrawn":
                raise LeaseError("this answer was withdrawn by the owner of the room")
            if row.state in ("skipped", "expired") and not self._renew(connection, row, now_s):
                raise LeaseError("others have taken this task meanwhile")
            return _lease(connection, leases.lease_of_token(connection, annotator, token))

    def save_draft(
        self, annotator: str, token: str, revision: int, writer: str, body: Mapping[str, Any]
    ) -> bool:
        """Store unfinished work and renew the lease; False if another writer was here since.

        An older revision than the stored one changes nothing. `writer` is the browser tab.
        """
        now_s = self.store.clock()
        with self.store.database.write() as connection:
            lease = leases.lease_of_token(connection, annotator, token)
            if lease.state in ("held", "expired"):
                self._renew(connection, lease, now_s)
            key = {"task": lease.task, "annotator": annotator}
            stored = first(connection, "drafts", **key)
            if stored is not None and stored.revision >= revision:
                return bool(stored.writer == writer)
            delete(connection, "drafts", **key)
            values = {"revision": revision, "writer": writer, "body": dumps(body), "time": now_s}
            insert(connection, "drafts", {**key, **values})
        return True

    def submit(self, annotator: str, token: str, form: str, record: Mapping[str, Any]) -> Outcome:
        """Store an answer for good. `form` names this filled-in form, however often it is sent.

        `record` has the keys of a ranking (task, annotator, kind, skipped, ...), already checked.
        """
        now_s = self.store.clock()
        name = f"{annotator}/{form}"
        with self.store.database.write() as connection:
            lease = leases.lease_of_token(connection, annotator, token)
            assert (record["task"], record["annotator"]) == (lease.task, annotator)
            key = {"task": lease.task, "annotator": annotator}
            before = first(connection, "answers", **key, is_latest=1)
            row = answer_row(record, 1 if before is None else before.version + 1, now_s)
            if first(connection, "answers", form=name) is not None or (
                before is not None and same_content(before.record, row["record"])
            ):
                return "again"
            withdrawn = (
                lease.state == "withdrawn"
            )  # an amendment counts no more than what it amends
            has_counted = before is not None and not before.is_skip and not before.is_surplus
            surplus = (
                not row["is_skip"]
                and not has_counted
                and not withdrawn
                and not leases.has_place(connection, annotator, lease.task, now_s)
            )
            flags = {"is_surplus": int(surplus), "is_withdrawn": int(withdrawn)}
            self.store.append(connection, [{**row, "form": name, **flags}])
            if not withdrawn:
                state = "expired" if surplus else "skipped" if row["is_skip"] else "done"
                leases.set_state(connection, token, state)
            delete(connection, "drafts", **key)
            if row["is_skip"]:  # somebody else gets it, unless the task is full without it
                leases.reopen_task(connection, lease.task)
            leases.close_full(connection, [lease.task])
            if self.overlap is not None and state == "done":
                widen(connection, lease.task, self.overlap, now_s)
            if self.mixing.screening is not None:
                screen_when_done(connection, annotator, self.mixing.screening, now_s)
        return "surplus" if surplus or withdrawn else "stored"

    def _is_out(self, connection: Connection, annotator: str) -> bool:
        failed = verdict_of(connection, annotator) == "failed"
        return self.mixing.screening is not None and failed

    def _renew(self, connection: Connection, lease: Row[Any], now_s: float) -> bool:
        """Hold a place for the lease if there is one; else mark it expired."""
        free = leases.has_place(connection, lease.annotator, lease.task, now_s)
        if free:
            leases.hold(connection, lease.token, now_s + self.lease_s)
        else:
            leases.set_state(connection, lease.token, "expired")
        return free

    def _take(
        self, connection: Connection, annotator: str, task: Row[Any], now_s: float
    ) -> Row[Any]:
        order = [response["id"] for response in json.loads(task.record).get("responses", [])]
        self.rng.shuffle(order)
        row = leases.lease_row(task.id, annotator, "held", order, now_s)
        insert(connection, "leases", {**row, "expires": now_s + self.lease_s})
        self.store.log(connection, annotator, "lease", task.id, {})
        return leases.lease_of_token(connection, annotator, row["token"])


def _lease(connection: Connection, row: Row[Any]) -> Lease:
    task = first(connection, "tasks", id=row.task)
    draft = first(connection, "drafts", task=row.task, annotator=row.annotator)
    assert task is not None
    return Lease(
        token=row.token,
        task=row.task,
        kind=task.kind,
        record=json.loads(task.record),
        shown_order=tuple(json.loads(row.shown)),
        state=row.state,
        draft=None if draft is None else json.loads(draft.body),
        revision=0 if draft is None else draft.revision,
    )
