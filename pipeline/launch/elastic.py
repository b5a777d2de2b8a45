"""The ranks of a training stage, started and watched by torch.distributed.elastic.

On one machine this command starts all of them. Where torchrun, srun or another launcher started
one process a rank, rank 0 runs the experiment; for every stage that trains it calls the others
through torch's store, and each starts its own rank. Ranks are fresh processes for every stage, so
that nothing of one (groups, engines, memory) is left to the next.
"""

import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

from torch.distributed import DistStoreError, TCPStore, rendezvous  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std, start_processes
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure, get_error_handler

from pipeline.launch.options import Launch, slurm_environment
from pipeline.launch.worker import STEPS, end_with_launcher
from pipeline.runs.failures import INPUT_ERROR, LOST_CONTACT, RankFailed
from stages.progress import Report, Step

POLL_S = 0.2


class ElasticRanks:
    """The ranks that this process starts: all of them, or the one that a launcher made it.

    They end with this process, however it ends.
    """

    def __init__(self, launch: Launch) -> None:
        self.launch, self.manifest = launch, launch.manifest
        self.joined = launch.rank is not None
        if not self.joined:
            count = str(launch.num_ranks)
            world = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "localhost"}
            numbers = map(str, range(launch.num_ranks))
            self.ranks = [{"RANK": rank, "LOCAL_RANK": rank, **world} for rank in numbers]
            return
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_launcher(os.getppid())
        os.environ.update({**slurm_environment(os.environ), **os.environ})
        self.ranks = [{"RANK": str(launch.rank)}]
        self.store, *_ = next(rendezvous("env://", timeout=timedelta(minutes=10)))
        self.num_calls = 0

    def train(self, run: Path, stage: str, report: Report) -> None:
        """Run a stage on all ranks; raise RankFailed, or ValueError for bad input.

        The output of ranks other than the first goes to RUN/.logs/STAGE_*/attempt_0/RANK.
        """
        store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        if self.joined:
            self._call(stage, store.port)
        self._run(run, stage, store.port, partial(_report_steps, store, report))

    def follow(self, run: Path) -> None:
        """Run this process's rank of every stage that rank 0 calls, until it is done."""
        while True:
            self.num_calls += 1
            key = f"call-{self.num_calls}"
            try:
                while not self.store.check([key]):  # a blocking wait would not let signals through
                    time.sleep(POLL_S)
                stage, port = json.loads(self.store.get(key))
            except RuntimeError:
                raise RankFailed("rank 0 is gone; this rank was stopped", LOST_CONTACT) from None
            if not stage:
                self.store.set(f"done-{self.launch.rank}", "")
                return
            if not (run / "config.yaml").is_file():
                raise ValueError(
                    f"{run}/config.yaml is not there; expected storage that all machines share"
                )
            self._run(run, stage, port, partial(time.sleep, POLL_S))

    def finish(self) -> None:
        """Let the processes of the other ranks end, as rank 0."""
        if self.joined:
            self._call("", 0)
            with suppress(RuntimeError):
                others = [f"done-{rank}" for rank in range(1, self.launch.num_ranks)]
                self.store.wait(others, timedelta(seconds=30))

    def _call(self, stage: str, port: int) -> None:
        self.num_calls += 1
        self.store.set(f"call-{self.num_calls}", json.dumps([stage, port]))

    def _run(self, run: Path, stage: str, port: int, watch: Callable[[], None]) -> None:
        elastic_log = logging.getLogger("torch.distributed.elastic")
        elastic_log.addHandler(logging.NullHandler())  # RankFailed says it in one line
        elastic_log.propagate = False
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ""  # they raise here, as everywhere
        meeting = {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        meeting["TORCHELASTIC_RUN_ID"] = stage
        command = ("-m", "pipeline.steps.rank", run, stage, self.launch.sharding, os.getpid())
        here = range(len(self.ranks))
        processes = start_processes(
            stage,
            sys.executable,
            args=dict.fromkeys(here, command),
            envs={number: {**self.ranks[number], **meeting} for number in here},
            logs_specs=DefaultLogsSpecs(str(run / ".logs"), dict.fromkeys(here[1:], Std.ALL)),
        )
        try:
            while (result := processes.wait(0)) is None:
                watch()
            watch()
        finally:
            processes.close(timeout=5)
        if result.is_failed():
            first, failure = min(result.failures.items(), key=lambda item: item[1].timestamp)
            error = _failure(stage, self.ranks[first]["RANK"], failure)
            raise self._shared(error, failure.exitcode) if self.joined else error

    def _shared(self, error: RankFailed | ValueError, code: int) -> RankFailed | ValueError:
        """Leave the cause to the other ranks, or return theirs where this one only lost contact."""
        with suppress(RuntimeError):  # rank 0 is gone, and the store with it
            if code != LOST_CONTACT:
                self.store.set("cause", str(error))
            elif self.store.check(["cause"]):
                error = RankFailed(self.store.get("cause").decode(), LOST_CONTACT)
        get_error_handler().record_exception(error)  # for torchrun's own report
        return error


def _report_steps(store: TCPStore, report: Report) -> None:
    """Report the steps that rank 0 has sent; wait a moment for one."""
    with suppress(DistStoreError):
        store.wait([STEPS], timedelta(seconds=POLL_S))
    while store.queue_len(STEPS):
        report(Step(*json.loads(store.queue_pop(STEPS))))


def _failure(stage: str, rank: str, failure: ProcessFailure) -> RankFailed | ValueError:
    """Return the cause in one line; the traceback of a rank's own error goes to stderr."""
    who, code = f"{stage}: rank {rank} on {socket.gethostname()}", failure.exitcode
    if code < 0:
        hint = ": out of memory?" if -code == signal.SIGKILL else ""
        what = f"was killed by signal {-code} ({failure.signal_name()}{hint})"
    elif not isinstance(failure.message, dict):
        what = f"ended with code {code}"
    else:
        kind, _, text = failure.message["message"].partition(": ")
        if code == INPUT_ERROR:
            return ValueError(text)
        first_line = text.strip().partition("\n")[0]
        what = f"failed: {kind}: {first_line}"
        if code == LOST_CONTACT:
            what = f"lost contact with another rank ({first_line})"
        else:
            sys.stderr.write(failure.message["extraInfo"]["py_callstack"])
    lost = code < 0 or code == LOST_CONTACT
    return RankFailed(f"{who} {what}; all ranks were stopped", LOST_CONTACT if lost else 1)
