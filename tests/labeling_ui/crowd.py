"""Many annotators at once, as their pages behave, and a ledger of what they saw acknowledged."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from labeling_ui.store.store import Store
from labeling_ui.store.withdrawal import answers_by_person, release, restore, withdraw
from tests.browser.room_server import RoomServer

GIVE_UP_S = 600.0  # a starved machine starts a server slowly
Key = tuple[str, str]  # a lease's token, an annotator


@dataclass
class Ledger:
    """Everything the clients sent and saw acknowledged, and how long each answer took."""

    submitted: dict[Key, Mapping[str, Any]] = field(default_factory=dict)
    drafts: dict[Key, tuple[int, Mapping[str, Any]]] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    owner: Counter[str] = field(default_factory=Counter)  # what the owner did meanwhile


class Person:
    """One annotator: a draft, a submit, the next task; it asks again until the room answers."""

    def __init__(self, server: RoomServer, name: str, ledger: Ledger, pace_s: float) -> None:
        self.name, self.ledger, self.pace_s = name, ledger, pace_s
        self.client = httpx.Client(base_url=server.address, timeout=30)
        self.rng = random.Random(name)
        self.component = 0

    def work(self) -> None:
        """Sign in and answer until nothing is left."""
        try:
            self._enter()
            task = self._call("start", {}).get("task")
            while task is not None:
                task = self._answer(task["token"])
        except Exception as error:  # a thread's end must be seen
            self.ledger.errors.append(f"{self.name}: {error!r}")
            raise

    def _enter(self) -> None:
        time.sleep(self.rng.random() * self.pace_s)
        self._until_answered("POST", "/login", data={"name": self.name})
        parts = self._until_answered("GET", "/config").json()["components"]
        (self.component,) = [part["id"] for part in parts if part["type"] == "html"]

    def _answer(self, token: str) -> Any:
        tiers = [[0], [1, 2], [3]]
        self.rng.shuffle(tiers)
        body = {"tiers": tiers, "ratings": {str(i): self.rng.randint(1, 7) for i in range(4)}}
        self._pause()
        draft = {"revision": 1, "writer": "tab", "token": token, "body": body}
        if self._call("save_draft", draft).get("saved"):
            self.ledger.drafts[token, self.name] = (1, body)
        self._pause()
        form = f"{self.rng.random()}"
        reply = self._call("submit", {"token": token, "form": form, "body": body})
        self.ledger.outcomes[reply.get("outcome", "error")] += 1
        if "outcome" in reply:
            self.ledger.submitted[token, self.name] = body
        return reply.get("task")

    def _pause(self) -> None:
        time.sleep(self.pace_s * (0.5 + self.rng.random()))

    def _call(self, name: str, message: Mapping[str, Any]) -> dict[str, Any]:
        page = {"component_id": self.component, "session_hash": "x"}
        body = {"data": message, "fn_name": name, **page}
        answered = self._until_answered("POST", "/gradio_api/component_server/", json=body)
        reply: dict[str, Any] = answered.json()
        if "error" in reply:
            self.ledger.errors.append(f"{self.name}: {reply['error']}")
        return reply

    def _until_answered(self, method: str, path: str, **options: Any) -> httpx.Response:
        give_up = time.monotonic() + GIVE_UP_S
        while time.monotonic() < give_up:
            began_s = time.perf_counter()
            try:
                reply = self.client.request(method, path, **options)
            except httpx.TransportError:
                time.sleep(0.3)
                continue
            self.ledger.seconds.append(time.perf_counter() - began_s)
            if reply.status_code >= 400:
                self.ledger.errors.append(f"{path}: {reply.status_code} {reply.text[:200]}")
            return reply
        raise AssertionError(f"no answer to {path} within {GIVE_UP_S} s")


def meddle(store: Store, ledger: Ledger, names: list[str], every_s: float) -> None:
    """As an owner at the command line, withdraw, restore and release at random."""
    rng = random.Random(len(names))
    while True:
        action = rng.choice((withdraw, restore, release))
        with suppress(ValueError):  # there is nothing to withdraw, restore or release
            action(store, rng.choice(names), "owner")
            ledger.owner[action.__name__] += 1
        time.sleep(every_s * 2 * rng.random())
        if ledger.owner["ended"]:
            return


def work_through(
    server: RoomServer,
    store: Store,
    *,
    people: int,
    pace_s: float,
    kills: int,
    every_s: float,
    overlap: int = 3,
    meddled_s: float | None = None,
) -> Ledger:
    """Let people answer all tasks of a room that is killed at random; check after every kill.

    Every `meddled_s` or so somebody's answers are withdrawn or restored, or a lease released, until
    the last kill.
    """
    ledger, rng = Ledger(), random.Random(kills)
    workers = [Person(server, f"person-{i}", ledger, pace_s) for i in range(people)]
    threads = [threading.Thread(target=person.work, daemon=True) for person in workers]
    for thread in threads:
        thread.start()
    owner = threading.Thread(
        target=meddle, args=(store, ledger, [one.name for one in workers], meddled_s), daemon=True
    )
    if meddled_s is not None:
        owner.start()
    for _ in range(kills):
        time.sleep(every_s * 2 * rng.random())
        server.kill()
        check_acknowledged(store, ledger)
        assert max(counted(store).values(), default=0) <= overlap
        server.start()
    if meddled_s is not None:
        ledger.owner["ended"] += 1
        owner.join()
        for name in answers_by_person(store, withdrawn=True):
            restore(store, name, "owner")
    for thread in threads:
        thread.join()
    check_acknowledged(store, ledger)
    return ledger


def counted(store: Store) -> Counter[str]:
    """Count the answers of each task that count."""
    query = "SELECT task, count(*) FROM answers WHERE is_surplus = 0 AND is_withdrawn = 0"
    with store.database.read() as connection:
        return Counter(dict(connection.exec_driver_sql(f"{query} GROUP BY task").all()))


def check_acknowledged(store: Store, ledger: Ledger) -> None:
    """Every acknowledged submit is stored as it was sent, and so is every draft before its submit.

    It may be called while people wait for a killed server: what they saw by now must be there.
    """
    submitted, drafts = dict(ledger.submitted), dict(ledger.drafts)
    query = "SELECT token, l.annotator, record FROM leases l JOIN answers USING (task, annotator)"
    with store.database.read() as connection:
        rows = connection.exec_driver_sql(query).all()
        stored = {(row[0], row[1]): json.loads(row[2]) for row in rows}
        query = "SELECT token, l.annotator, revision, body FROM drafts d JOIN leases l"
        rows = connection.exec_driver_sql(f"{query} USING (task, annotator)").all()
    stored_drafts = {(row[0], row[1]): (row[2], json.loads(row[3])) for row in rows}
    for key, body in submitted.items():
        record = stored[key]
        order = record["shown_order"]
        tiers = enumerate(body["tiers"], 1)
        assert record["ranks"] == {order[i]: rank for rank, tier in tiers for i in tier}
        assert record["ratings"] == {order[int(i)]: r for i, r in body["ratings"].items()}
    for key, draft in drafts.items():
        assert key in stored or stored_drafts[key] == draft


def check_complete(store: Store, ledger: Ledger, *, num_tasks: int, overlap: int) -> None:
    """Nothing lost, nothing twice, no task with more than its people, and no error anywhere.

    Where answers were withdrawn meanwhile some are surplus; all are there, and each task is full.
    """
    assert ledger.errors == []
    with store.database.read() as connection:
        rows = connection.exec_driver_sql("SELECT task, annotator FROM answers").all()
    given = [(row[0], row[1]) for row in rows]
    assert len(given) == len(set(given)) == len(ledger.submitted)
    full = counted(store)
    assert len(full) == num_tasks
    assert set(full.values()) == {overlap}
    if not ledger.owner:
        assert len(given) == num_tasks * overlap
        assert set(ledger.outcomes) <= {"stored", "again"}
