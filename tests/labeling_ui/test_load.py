"""Fifty people at once, and a server that crashes under them: nothing lost, nothing twice."""

import random
import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from labeling_ui.store import Store
from tests.browser.room_server import RoomServer
from tests.labeling_ui.examples import small_task

PACE_S = 1.0  # one request a second and person
GIVE_UP_S = 120.0


@dataclass
class Log:
    """What the clients saw acknowledged, and how long each answer took."""

    submitted: list[tuple[str, str]] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    drafts: dict[str, tuple[str, int]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    cpu_s: float = 0.0


class Person:
    """One annotator as the page behaves: it asks again until the room answers."""

    def __init__(self, server: RoomServer, name: str, log: Log) -> None:
        self.server, self.name, self.log = server, name, log
        self.client = httpx.Client(base_url=server.address, timeout=30)
        self.rng = random.Random(name)
        self.component = 0

    def until_answered(self, method: str, path: str, **asked: Any) -> httpx.Response:
        give_up = time.monotonic() + GIVE_UP_S
        while time.monotonic() < give_up:
            try:
                began_s = time.perf_counter()
                reply = self.client.request(method, path, **asked)
                self.log.seconds.append(time.perf_counter() - began_s)
            except httpx.TransportError:
                time.sleep(0.3)
                continue
            if reply.status_code >= 500:
                self.log.errors.append(reply.text[:200])
            return reply
        raise AssertionError(f"no answer to {path} within {GIVE_UP_S} s")

    def call(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        page = {"component_id": self.component, "session_hash": "x"}
        body = {"data": asked, "fn_name": name, **page}
        reply: dict[str, Any] = self.until_answered(
            "POST", "/gradio_api/component_server/", json=body
        ).json()
        if "error" in reply:
            self.log.errors.append(reply["error"])
        return reply

    def work(self, until: float) -> None:
        self.until_answered("POST", "/login", data={"name": self.name})
        parts = self.until_answered("GET", "/config").json()["components"]
        (self.component,) = [part["id"] for part in parts if part["type"] == "html"]
        time.sleep(self.rng.random() * PACE_S)
        task = self.call("start", {}).get("task")
        revision = 0
        while task is not None and time.monotonic() < until:
            tiers = [[0], [1, 2], [3]]
            self.rng.shuffle(tiers)
            body = {"tiers": tiers, "ratings": {str(i): 1 + i for i in range(4)}}
            for act in ("save_draft", "submit"):
                time.sleep(PACE_S * (0.5 + self.rng.random()))
                if act == "save_draft":
                    revision += 1
                    asked = {"revision": revision, "writer": "tab", "token": task["token"]}
                    self.call(act, {**asked, "body": body})
                    self.log.drafts[self.name] = (task["token"], revision)
                    continue
                form = f"{self.rng.random()}"
                token = task["token"]
                reply = self.call(act, {"token": token, "form": form, "body": body})
                self.log.outcomes[reply.get("outcome", "error")] += 1
                self.log.submitted.append((token, self.name))
                task = reply.get("task")


def run(folder: Path, *, people: int, tasks: int, seconds: float, kills: int) -> tuple[Store, Log]:
    """Let so many people work for so long on a room that is killed and started so many times."""
    server = RoomServer(folder)
    store, log = Store(server.where), Log()
    store.add_tasks([small_task(f"t{i}") for i in range(tasks)], overlap=3)
    server.start()
    until = time.monotonic() + seconds
    workers = [Person(server, f"person-{i}", log) for i in range(people)]
    threads = [threading.Thread(target=person.work, args=(until,)) for person in workers]
    for thread in threads:
        thread.daemon = True
        thread.start()
    for _ in range(kills):
        time.sleep(seconds / (kills + 1))
        server.kill()
        server.start()
    for thread in threads:
        thread.join()
    log.cpu_s = server.cpu_s()
    server.kill()
    return store, log


def check(store: Store, log: Log) -> None:
    """Every acknowledged submit is there once, and no task has more than its three."""
    assert log.errors == []
    with store.database.read() as connection:
        query = "SELECT token, annotator FROM leases WHERE state = 'done'"
        done = {tuple(row) for row in connection.exec_driver_sql(query)}
        query = "SELECT token, l.annotator FROM drafts JOIN leases l USING (task, annotator)"
        kept = {tuple(row) for row in connection.exec_driver_sql(query)}
    acknowledged = set(log.submitted)
    assert acknowledged <= done
    assert len(log.submitted) == len(acknowledged)
    stored = [(r.task, r.annotator) for r in store.rankings()]
    assert len(stored) == len(set(stored)) == len(done)
    assert max(Counter(task for task, _ in stored).values()) <= 3
    unfinished = {(token, name) for name, (token, _) in log.drafts.items()} - done
    assert unfinished <= kept


@pytest.mark.slow
@pytest.mark.parametrize("kills", [0, 3])
def test_fifty_people_lose_nothing_even_when_the_server_is_killed(
    tmp_path: Path, kills: int
) -> None:
    store, log = run(tmp_path, people=50, tasks=2000, seconds=45, kills=kills)
    check(store, log)
    steps = statistics.quantiles(log.seconds, n=100)
    print(
        f"{len(log.seconds)} requests, p50 {steps[49]:.3f} s, p95 {steps[94]:.3f} s", log.outcomes
    )
    store.close()
