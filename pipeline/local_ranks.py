"""The ranks of one machine: processes that do a stage's work, their steps, and how they ended.

They end with the command that started them, however it ends; see `pipeline/worker.py`.
"""

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.placement import Place
from pipeline.rank_failure import Failure, of_exit
from stages.progress import Step

TERMINATE_S = 5.0  # between asking a rank to stop and ending it
NOT_OURS = ("TORCHELASTIC_USE_AGENT_STORE",)  # ranks meet at a port of their stage's own


class LocalRanks:
    """This member's ranks of one stage, started; all are gone when the `with` block is left.

    `command` is what every rank runs, with `further` in its environment; it meets the others at
    `place.leader`:`port`. What ranks other than the first print goes to `logs`/STAGE-rank-N.log.
    """

    def __init__(
        self,
        place: Place,
        port: int,
        command: Sequence[str],
        logs: Path,
        stage: str,
        further: Mapping[str, str],
    ) -> None:
        self.place, self.logs, self.stage = place, logs, stage
        self.ends: dict[int, int] = {}  # rank → exit code
        self.told: set[int] = set()  # ranks that said why they fail
        self.rests: dict[int, bytes] = dict.fromkeys(place.ranks, b"")
        self.pipes = selectors.DefaultSelector()
        logs.mkdir(parents=True, exist_ok=True)
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        for rank in place.ranks:
            told = {**environment(place, rank, port), **further}
            self.processes[rank] = self._start(rank, command, told)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.stop()
        self.pipes.close()

    @property
    def running(self) -> bool:
        """Whether one of them has not ended."""
        return len(self.ends) < len(self.processes)

    def poll(self, wait_s: float) -> tuple[list[Step], list[Failure]]:
        """What was said since the last call, waiting at most so long for it."""
        rows: list[tuple[int, dict[str, Any]]] = []
        if not self.pipes.get_map():
            time.sleep(wait_s)
        for key, _ in self.pipes.select(wait_s) if self.pipes.get_map() else ():
            rows += ((key.data, row) for row in self._read(key.data))
        ended = {
            rank: process.returncode
            for rank, process in self.processes.items()
            if rank not in self.ends and process.poll() is not None
        }
        for rank in ended:  # what it said last; its children may hold the pipe open
            rows += ((rank, row) for row in self._read(rank))
        steps = [Step(*row["step"]) for _, row in rows if "step" in row]
        failures = [Failure(**row["failure"]) for _, row in rows if "failure" in row]
        self.told |= {rank for rank, row in rows if "failure" in row}
        silent = [rank for rank, code in ended.items() if code and rank not in self.told]
        failures += (of_exit(rank, self.place.host, ended[rank]) for rank in silent)
        self.ends |= ended
        return steps, failures

    def stop(self) -> None:
        """Ask those that run to end, and end those that do not."""
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        ends = time.monotonic() + TERMINATE_S
        for process in self.processes.values():
            try:
                process.wait(max(0.0, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def log(self, rank: int) -> Path:
        """Where a rank's output goes, unless it is the first of all."""
        return self.logs / f"{self.stage}-rank-{rank}.log"

    def _start(
        self, rank: int, command: Sequence[str], told: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        with self.log(rank).open("wb") as log:
            process = subprocess.Popen(
                command,
                env=told,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=None if rank == 0 else log,
                start_new_session=True,  # Ctrl-C is for this command, which passes it on
            )
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self.pipes.register(process.stdout, selectors.EVENT_READ, rank)
        return process

    def _read(self, rank: int) -> list[dict[str, Any]]:
        """The whole lines that a rank has written, as rows; its pipe is dropped at its end."""
        pipe = self.processes[rank].stdout
        assert pipe is not None
        while not pipe.closed:
            try:
                read = os.read(pipe.fileno(), 1 << 20)
            except BlockingIOError:
                break
            if not read:
                self.pipes.unregister(pipe)
                pipe.close()
            self.rests[rank] += read
        *lines, self.rests[rank] = self.rests[rank].split(b"\n")
        return [json.loads(line) for line in lines]


def environment(place: Place, rank: int, port: int) -> dict[str, str]:
    """What a rank is told: its number, where it meets the others, its share of the cores."""
    here = place.local_rank + rank - place.first_rank
    threads = max(1, (os.cpu_count() or 1) // place.on_machine)
    kept = {name: value for name, value in os.environ.items() if name not in NOT_OURS}
    return {
        "OMP_NUM_THREADS": str(threads),
        **kept,
        "RANK": str(rank),
        "WORLD_SIZE": str(place.world),
        "LOCAL_RANK": str(here),
        "LOCAL_WORLD_SIZE": str(place.on_machine),
        "MASTER_ADDR": place.leader,
        "MASTER_PORT": str(port),
        "RLHF_HOST": place.host,
        "RLHF_LAUNCHER": str(os.getpid()),
    }


def worker_command(run: Path, stage: str, sharding: str) -> list[str]:
    """What a rank runs: a stage of the run's folder, under a sharding or an accelerate config."""
    return [sys.executable, "-m", "pipeline.worker", str(run), stage, sharding]
