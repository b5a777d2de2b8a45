"""The first member of a job: does its ranks of a stage, hears the others, and ends all as one."""

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from pipeline.config.experiment import ExperimentConfig
from pipeline.interface import told_to_gloo
from pipeline.launch import Launch
from pipeline.local_ranks import LocalRanks, worker_command
from pipeline.members import Listener
from pipeline.rank_failure import Failure, cause, stopped
from pipeline.remote import started_over_ssh, to_be_started
from pipeline.runs.manifest import fingerprint
from pipeline.runs.run import Stage
from stages.progress import Report

POLL_S = 0.2
GRACE_S = 3.0  # after a failure, for the rank to be heard that others failed because of


class Crew:
    """All members of a job, as the first one sees them. Made by `leading`."""

    def __init__(self, launch: Launch, listener: Listener | None) -> None:
        self.launch, self.listener = launch, listener

    def over_processes(self, stage: Stage, run: Path) -> Stage:
        """The same stage with its work done by the ranks of all members."""

        def work(_: Path, report: Report) -> None:
            self._work(stage.name, run, report)

        return replace(stage, work=work, launched=self.launch.in_manifest())

    def tell(self, word: str, said: str) -> None:
        """Say something to all other members."""
        for line in self.listener.lines.values() if self.listener is not None else ():
            line.send({word: said})

    def _work(self, stage: str, run: Path, report: Report) -> None:
        port = free_port()
        busy = self._begin(stage, port)
        command, logs = worker_command(run, stage, self.launch.told), run / ".logs"
        with LocalRanks(self.launch.place, port, command, logs, stage, self._further()) as ranks:
            failures: list[Failure] = []
            ends = float("inf")
            while (ranks.running or busy) and time.monotonic() < ends:
                steps, found = ranks.poll(POLL_S)
                for step in steps:
                    report(step)
                failures += found + self._heard(busy)
                if failures:
                    known = cause(failures).kind in ("killed", "input")
                    ends = min(ends, time.monotonic() + (0.0 if known else GRACE_S))
        if failures:
            end = cause(failures)
            print(end.trace, end="", file=sys.stderr)
            raise stopped(stage, failures)

    def _begin(self, stage: str, port: int) -> set[int]:
        """Let all members begin; who has to end."""
        if self.listener is None:
            return set()
        self.listener.wait_for_all(self._say_who_is_missing)
        for line in self.listener.lines.values():
            line.send({"begin": stage, "port": port})
        return set(self.listener.lines)

    def _further(self) -> dict[str, str]:
        if self.listener is None or not self.launch.hosts:
            return {}
        return told_to_gloo(next(iter(self.listener.lines.values())).own_address)

    def _say_who_is_missing(self, members: list[int]) -> None:
        if self.launch.hosts:
            for member in members:
                print(to_be_started(self.launch.hosts[member], member), file=sys.stderr)
        else:
            print(f"waiting for ranks {members} to come", file=sys.stderr)

    def _heard(self, busy: set[int]) -> list[Failure]:
        """What went wrong at other members; those that have ended are no longer busy."""
        failures: list[Failure] = []
        for member in sorted(busy):
            assert self.listener is not None
            line, host = self.listener.lines[member], self.listener.hosts[member]
            while message := line.take():
                if "failure" in message:
                    failures.append(Failure(**message["failure"]))
                elif "ended" in message:
                    busy.discard(member)
            if line.fault and member in busy:
                busy.discard(member)
                failures.append(Failure(None, host, "gone", f"is gone ({line.fault})"))
        return failures


@contextmanager
def leading(launch: Launch, config: ExperimentConfig) -> Iterator[Crew]:
    """The job of this launch, for as long as the context lasts; all members hear how it ends."""
    if launch.place.members == 1:
        yield Crew(launch, None)
        return
    with ExitStack() as stack:
        listener = Listener(launch.place, token(launch, config))
        stack.callback(listener.close)
        if launch.hosts and not launch.by_hand:
            stack.enter_context(started_over_ssh(launch.hosts))
        crew = Crew(launch, listener)
        try:
            yield crew
        except BaseException as error:
            crew.tell("stop", str(error) or "the first host was interrupted")
            raise
        crew.tell("end", "")


def token(launch: Launch, config: ExperimentConfig) -> str:
    """What all members of a job have in common, hashed: hosts, ranks, sharding and config."""
    spread = {"world": launch.place.world, "hosts": [asdict(host) for host in launch.hosts]}
    spread["sharding"] = launch.sharding
    return fingerprint("job", {**spread, "config": config.model_dump(mode="json")}, {})


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
