"""The ranks of a training stage, started and watched by torch.distributed.elastic.

On one machine this command is the elastic agent. Where torchrun, srun or another launcher started
one process a rank, rank 0 runs the experiment; for every stage that trains it calls the others
through torch's store, and each runs its own rank as a fresh process. A run has many stages, and
fresh processes leave nothing of one (groups, engines, memory) to the next.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from _thread import interrupt_main
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from torch.distributed import TCPStore, rendezvous  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline.launch.options import Launch, slurm_environment
from pipeline.launch.worker import INPUT_ERROR, LOST_CONTACT, end_with_launcher
from pipeline.runs.failures import RankFailed
from stages.progress import Report, Step


class LocalRanks:
    """Ranks on this machine. They end with this process, however it ends."""

    def __init__(self, launch: Launch) -> None:
        self.launch, self.manifest = launch, launch.manifest

    def train(self, run: Path, stage: str, report: Report) -> None:
        """Run a stage on all ranks; raise RankFailed, or ValueError for bad input.

        The output of ranks other than the first goes to RUN/.logs/STAGE_*/attempt_0/RANK.
        """
        agent_log = logging.getLogger("torch.distributed.elastic")
        agent_log.addHandler(logging.NullHandler())  # RankFailed says it in one line
        agent_log.propagate = False
        others = dict.fromkeys(range(1, self.launch.num_ranks), Std.ALL)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self.launch.num_ranks,
            run_id=stage,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="127.0.0.1",
            max_restarts=0,  # the same command resumes
            logs_specs=DefaultLogsSpecs(str(run / ".logs"), {0: Std.NONE, **others}),
            signals_to_handle="",  # they raise here, and the agent ends its ranks on the way out
            shutdown_timeout=5,
        )
        with _steps_of_rank_0(report) as steps:
            try:
                command = _command(run, stage, self.launch.sharding, steps)
                elastic_launch(config, sys.executable)(*command)
            except ChildFailedError as error:
                raise _failure(stage, error) from None


class JoinedRanks:
    """Ranks of which another launcher started one process each, this one among them."""

    def __init__(self, launch: Launch) -> None:
        self.launch, self.manifest = launch, launch.manifest
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_launcher(os.getppid())
        os.environ.update({**slurm_environment(os.environ), **os.environ})
        self.store, *_ = next(rendezvous("env://", timeout=timedelta(minutes=10)))
        self.num_stages = 0
        self.meeting: TCPStore | None = None  # where the ranks of the current stage meet

    def train(self, run: Path, stage: str, report: Report) -> None:
        """Run a stage on all ranks, as rank 0; raise RankFailed, or ValueError for bad input."""
        self.meeting = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        self._call(stage, self.meeting.port)
        with _steps_of_rank_0(report) as steps:
            self._run(run, stage, self.launch.sharding, self.meeting.port, steps)

    def follow(self, run: Path) -> None:
        """Run this process's rank of every stage that rank 0 calls, until it is done."""
        while True:
            self.num_stages += 1
            key = f"stage-{self.num_stages}"
            try:
                while not self.store.check([key]):  # a blocking wait would not let signals through
                    time.sleep(0.5)
                stage, sharding, port = json.loads(self.store.get(key))
            except RuntimeError:
                raise RankFailed("rank 0 is gone; this rank was stopped", LOST_CONTACT) from None
            if stage is None:
                self.store.set(f"done-{self.launch.rank}", "")
                return
            if not (run / "config.yaml").is_file():
                raise ValueError(
                    f"{run}/config.yaml is not there; expected storage that all machines share"
                )
            self._run(run, stage, sharding, port, Path(os.devnull))

    def finish(self) -> None:
        """Let the other processes end, as rank 0."""
        self._call(None, 0)
        with suppress(RuntimeError):
            others = [f"done-{rank}" for rank in range(1, self.launch.num_ranks)]
            self.store.wait(others, timedelta(seconds=30))

    def _call(self, stage: str | None, port: int) -> None:
        self.num_stages += 1
        message = json.dumps([stage, self.launch.sharding, port])
        self.store.set(f"stage-{self.num_stages}", message)

    def _run(self, run: Path, stage: str, sharding: str, port: int, steps: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            meeting = {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
            errors = {"TORCHELASTIC_ERROR_FILE": f"{folder}/error.json"}  # torchrun's own if set
            command = [sys.executable, *_command(run, stage, sharding, steps)]
            environment = {**errors, **os.environ, **meeting}
            process = subprocess.Popen(command, env=environment, start_new_session=True)
            try:
                code = process.wait()
            finally:
                process.kill()
                process.wait()
            error_file = environment["TORCHELASTIC_ERROR_FILE"]
            failure = ProcessFailure(int(os.environ["LOCAL_RANK"]), process.pid, code, error_file)
        if code:
            error = _failure(stage, ChildFailedError(stage, {self.launch.rank or 0: failure}))
            with suppress(RuntimeError):  # rank 0 is gone, and the store with it
                if code != LOST_CONTACT:
                    self.store.set("cause", str(error))
                elif self.store.check(["cause"]):
                    error = RankFailed(self.store.get("cause").decode(), LOST_CONTACT)
            raise error


@contextmanager
def _steps_of_rank_0(report: Report) -> Iterator[Path]:
    """Yield a named pipe; a thread reports what rank 0 writes to it, a step a line."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        path = Path(folder, "steps")
        os.mkfifo(path)
        pipe = os.open(path, os.O_RDWR)  # both ends, so that nothing here ever waits for a rank

        def listen() -> None:
            try:
                with open(pipe, encoding="utf-8", closefd=False) as lines:
                    for line in iter(lines.readline, "\n"):
                        report(Step(*json.loads(line)))
            except BaseException:  # such as a full disk: the ranks have to end
                interrupt_main()
                raise

        listener = pool.submit(listen)
        try:
            yield path
        except KeyboardInterrupt:
            if listener.done():
                listener.result()
            raise
        finally:
            os.write(pipe, b"\n")
        listener.result()
        os.close(pipe)


def _command(run: Path, stage: str, sharding: str, steps: Path) -> list[str]:
    arguments = (run, stage, sharding, steps, os.getpid())
    return ["-m", "pipeline.steps.rank", *map(str, arguments)]


def _failure(stage: str, error: ChildFailedError) -> RankFailed | ValueError:
    """Return the cause in one line; the traceback of a rank's own error goes to stderr."""
    rank, failure = error.get_first_failure()
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
