"""One rank of a training stage: its failure goes to torch's error file, its steps to its store."""

import ctypes
import json
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from pipeline.config.shipped import accelerate_config
from pipeline.runs.failures import one_line
from stages.progress import Report, Step, silent

INPUT_ERROR, LOST_CONTACT = 2, 4  # exit codes; see pipeline/runs/failures.py
VICTIM_FIRST_S = 3.0  # for the launcher to notice the rank that this one lost
LOST = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|[Tt]imed out|[Cc]onnection refused|NCCL|Socket|"
    r"connectFullMesh|recvValue|remote process|store->"
)
STEPS = "steps"  # the queue in the ranks' store
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_rank(work: Callable[[Report], None], sharding: str, launcher: int, run: Path) -> None:
    """Do a stage's work as one of several ranks; exit with the code of its failure."""
    end_with_launcher(launcher)
    os.dup2(2, 1)  # stdout is for the path that the command prints
    threads = (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))
    import torch.distributed as dist
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    handler = get_error_handler()
    handler.initialize()
    try:
        _prepare(sharding)
        work(_reporter() if os.environ["RANK"] == "0" else silent)
    except Exception as error:
        code = 1
        if line := one_line(error, run):
            code, error = INPUT_ERROR, ValueError(line)
        elif isinstance(error, RuntimeError | OSError) and LOST.search(str(error)):
            code = LOST_CONTACT
            time.sleep(VICTIM_FIRST_S)
        handler.record_exception(error)
        sys.stderr.flush()
        os._exit(code)  # an orderly exit would wait for ranks that are gone
    if dist.is_initialized():  # threads of a group must not outlive the interpreter
        dist.destroy_process_group()


def end_with_launcher(launcher: int) -> None:
    """Let the kernel kill this process when the one that launched it dies, whatever kills that.

    Only Linux can; elsewhere the other ranks notice when they next meet.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != launcher:  # it died before
            os._exit(1)


def _reporter() -> Report:
    from torch.distributed import TCPStore

    store = TCPStore("localhost", int(os.environ["MASTER_PORT"]))

    def report(step: Step) -> None:
        row = [step.done, step.total, dict(step.metrics), step.doing]
        store.queue_push(STEPS, json.dumps(row))
        store.queue_len(STEPS)  # answered once the step has arrived

    return report


def _prepare(sharding: str) -> None:
    """Set this process's environment as `accelerate launch` would.

    `none` is plain data parallelism, unless `accelerate launch` itself started the ranks.
    """
    import torch

    from stages.distributed.compat import accelerate_environment
    from stages.distributed.ranks import prepare_cpu_ranks

    # DeepSpeed calls what torch has renamed; nothing a user could do about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    on_cpu = not torch.accelerator.is_available()
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    by_accelerate = any(name.startswith("ACCELERATE_") for name in os.environ)
    if sharding != "none" or not by_accelerate:
        os.environ.update(accelerate_environment(accelerate_config(sharding, on_cpu=on_cpu)))
    prepare_cpu_ranks()
