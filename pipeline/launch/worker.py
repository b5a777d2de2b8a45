"""One rank of a training stage: torch's error file for its failure, and no life of its own."""

import ctypes
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from pipeline.failures import one_line
from stages.progress import Report, Step, silent

INPUT_ERROR, LOST_CONTACT = 2, 4  # exit codes; see pipeline/failures.py
VICTIM_FIRST_S = 3.0  # for the launcher to notice the rank that this one lost
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "imed out",
    "onnection refused",
    "connectFullMesh",
    "NCCL",
    "Socket",
    "recvValue",
    "remote process",
    "store->",
)


def run_rank(
    work: Callable[[Report], None], accelerate: str, steps: Path, launcher: int, run: Path
) -> None:
    """Do a stage's work as one of several ranks; exit with the code of its failure."""
    end_with_launcher(launcher)
    os.dup2(2, 1)  # stdout is for the path that the command prints
    threads = (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    handler = get_error_handler()
    handler.initialize()
    try:
        _prepare(accelerate)
        work(_reporter(steps) if os.environ["RANK"] == "0" else silent)
    except Exception as error:
        if line := one_line(error, run):
            handler.record_exception(ValueError(line))
            _exit(INPUT_ERROR)
        if isinstance(error, RuntimeError | OSError) and any(word in str(error) for word in LOST):
            time.sleep(VICTIM_FIRST_S)
            handler.record_exception(error)
            _exit(LOST_CONTACT)
        handler.record_exception(error)
        _exit(1)


def end_with_launcher(launcher: int) -> None:
    """Let the kernel kill this process when the one that launched it dies, whatever kills that.

    Only Linux can; elsewhere the other ranks notice when they next meet.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
        if os.getppid() != launcher:  # it died before
            os._exit(1)


def _exit(code: int) -> None:
    sys.stderr.flush()
    os._exit(code)  # an orderly exit would wait for ranks that are gone


def _reporter(steps: Path) -> Report:
    pipe = steps.open("w", encoding="utf-8")

    def report(step: Step) -> None:
        row = [step.done, step.total, dict(step.metrics), step.doing]
        print(json.dumps(row), file=pipe, flush=True)

    return report


def _prepare(accelerate: str) -> None:
    from stages.cpu_ranks import let_ranks_run_on_cpu
    from stages.distributed.compat import configure_accelerate

    # DeepSpeed calls what torch has renamed; nothing a user could do about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    configure_accelerate(accelerate)
    let_ranks_run_on_cpu()
