"""A further member of a job: joins the first one and does its own ranks of every stage it names.

It ends with the first member, whether that says so or falls silent, and leaves no rank behind.
"""

import sys
import time
from dataclasses import asdict
from pathlib import Path

from pipeline.interface import told_to_gloo
from pipeline.launch import Launch
from pipeline.local_ranks import LocalRanks, worker_command
from pipeline.members import Line, Message, joined
from pipeline.rank_failure import Failure, RankFailed, cause

POLL_S = 0.2
VERDICT_S = 10.0  # for the first member to say why all stop


def follow(launch: Launch, run: Path, token: str) -> None:
    """Take part until the job ends; RankFailed where it fails, ValueError where there is none."""
    place = launch.place
    line = joined(place, token)
    try:
        while True:
            message = _next(line, launch)
            if "end" in message:
                return
            if "begin" in message:
                _do(launch, run, str(message["begin"]), int(message["port"]), line)
    finally:
        line.close()


def _next(line: Line, launch: Launch, wait_s: float | None = None) -> Message:
    """What the first member says next, {} after `wait_s`; RankFailed where it stops or is gone."""
    ends = None if wait_s is None else time.monotonic() + wait_s
    while True:
        message = line.take(POLL_S)
        if message is not None and "stop" in message:
            raise RankFailed(f"{message['stop']} (said by {launch.place.leader})", 4)
        if message is not None:
            return message
        if line.fault:
            raise RankFailed(
                f"host {launch.place.leader} is gone ({line.fault}); the ranks of "
                f"{launch.place.host} were stopped",
                4,
            )
        if ends is not None and time.monotonic() >= ends:
            return {}


def _do(launch: Launch, run: Path, stage: str, port: int, line: Line) -> None:
    """This member's ranks of one stage."""
    if not (run / "config.yaml").is_file():
        missing = f"{run}/config.yaml is not there; expected storage that all hosts share"
        _fail(line, launch, [Failure(None, launch.place.host, "input", missing)])
    command, logs = worker_command(run, stage, launch.told), run / ".logs"
    further = told_to_gloo(line.own_address) if launch.hosts else {}
    with LocalRanks(launch.place, port, command, logs, stage, further) as ranks:
        while ranks.running:
            _, failures = ranks.poll(POLL_S)
            if failures:
                _fail(line, launch, failures)
            _next(line, launch, 0.0)
    line.send({"ended": stage})


def _fail(line: Line, launch: Launch, failures: list[Failure]) -> None:
    """Tell the first member, and end with what it makes of that; never returns."""
    for failure in failures:
        line.send({"failure": asdict(failure)})
    _next(line, launch, VERDICT_S)
    end = cause(failures)
    print(end.trace, end="", file=sys.stderr)
    raise RankFailed(f"{end}; all ranks were stopped", 4)
