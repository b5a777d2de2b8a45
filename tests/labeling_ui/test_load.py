"""Fifty people at once, and a server that crashes under them: nothing lost, nothing twice.

Meanwhile an owner withdraws and restores answers and releases leases. The full size, which takes
half an hour on two cores:  .venv/bin/python -m pytest -s -m bench tests/labeling_ui/test_load.py
"""

import os
import statistics
from contextlib import closing
from pathlib import Path

import pytest

from labeling_ui.store.store import Store
from tests.browser.room_server import RoomServer
from tests.labeling_ui.crowd import Ledger, check_complete, work_through
from tests.labeling_ui.examples import small_task


def run(
    folder: Path,
    where: str,
    *,
    people: int,
    tasks: int,
    pace_s: float = 1.0,
    kills: int = 0,
    every_s: float = 0.0,
    meddled_s: float | None = None,
) -> Ledger:
    """Have every task answered by three people and check it all; what the clients saw."""
    server = RoomServer(folder, where)
    with closing(Store(where)) as store:
        store.add_tasks([small_task(f"t{i}") for i in range(tasks)], overlap=3)
        server.start()
        pace = {"people": people, "pace_s": pace_s, "kills": kills, "every_s": every_s}
        ledger = work_through(server, store, **pace, meddled_s=meddled_s)
        cpu_ms = 1000 * server.cpu_s() / len(ledger.seconds)
        server.kill()
        check_complete(store, ledger, num_tasks=tasks, overlap=3)
    steps = statistics.quantiles(ledger.seconds, n=100)
    times = ", ".join(f"p{i} {1000 * steps[i - 1]:.0f} ms" for i in (50, 95, 99))
    load = os.getloadavg()[0]
    print(f"\n{store.database.dialect}, {kills} kills: {len(ledger.seconds)} requests, {times},")
    cpu = f"{cpu_ms:.1f} ms server CPU a request, " if not kills else ""  # else: of the last server
    print(f"    {cpu}load {load:.1f}, {dict(ledger.outcomes)}, owner {dict(ledger.owner)}")
    return ledger


@pytest.mark.parametrize("where", ["postgresql"], indirect=True)  # in the browser: SQLite
def test_a_few_people_lose_nothing_when_the_server_is_killed(tmp_path: Path, where: str) -> None:
    run(tmp_path, where, people=8, tasks=40, pace_s=0.05, kills=1, every_s=1.0, meddled_s=0.2)


@pytest.mark.bench
@pytest.mark.timeout(1800)
def test_fifty_people_are_served_in_a_quarter_of_a_second(tmp_path: Path, where: str) -> None:
    ledger = run(tmp_path, where, people=50, tasks=2000)
    assert statistics.quantiles(ledger.seconds, n=20)[18] <= 0.25


@pytest.mark.bench
@pytest.mark.timeout(2700)
def test_fifty_people_lose_nothing_in_twenty_crashes(tmp_path: Path, where: str) -> None:
    run(tmp_path, where, people=50, tasks=2000, kills=20, every_s=11.0)


@pytest.mark.bench
@pytest.mark.timeout(2700)
@pytest.mark.parametrize("where", ["sqlite"], indirect=True)
def test_fifty_people_lose_nothing_while_answers_are_withdrawn_and_leases_released(
    tmp_path: Path, where: str
) -> None:
    run(tmp_path, where, people=50, tasks=2000, kills=20, every_s=11.0, meddled_s=2.0)
