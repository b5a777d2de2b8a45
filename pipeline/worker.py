"""One rank of a stage: `python -m pipeline.worker RUN STAGE SHARDING`, started by a launch.

It reads the run's config and does one stage's work; the run's folder is held by the command that
launched it, which hears the first rank's steps, and of every rank why it failed, as lines of JSON.
"""

import ctypes
import json
import os
import signal
import sys
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from pipeline.cli.errors import one_line
from pipeline.config.loading import load_config
from pipeline.rank_failure import Failure, of_error
from pipeline.steps.plan import plan
from stages.progress import Report, Step, silent

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(run: Path, name: str, sharding: str) -> int:
    """Do the stage's work as one of several ranks; return the exit code."""
    end_with_the_launcher(int(os.environ["RLHF_LAUNCHER"]))
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not mix with the lines for the launcher
    rank, host = int(os.environ["RANK"]), os.environ["RLHF_HOST"]

    def tell(step: Step) -> None:
        _say(lines, "step", [step.done, step.total, dict(step.metrics), step.doing])

    try:
        _make_ready(sharding)
        stage_work(run, name, tell if rank == 0 else silent)
    except Exception as error:  # the border: what is not the user's to mend keeps its traceback
        line, trace = one_line(error, run), traceback.format_exc()
        told = Failure(rank, host, "input", line) if line else of_error(rank, host, error, trace)
        _say(lines, "failure", asdict(told))
        os._exit(2 if line else 1)  # an orderly exit would wait for ranks that are gone
    return 0


def end_with_the_launcher(launcher: int) -> None:
    """Let this process be killed when the one that launched it dies, whatever kills that.

    Only Linux knows how; elsewhere the other ranks notice when they next meet.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
        if os.getppid() != launcher:  # it was quicker
            os._exit(1)


def stage_work(run: Path, name: str, report: Report) -> None:
    """A stage's work by the config in a run's folder, in a process that knows its rank."""
    stages = plan(load_config(run / "config.yaml"), run)
    stage = next(stage for stage in stages if stage.name == name)
    stage.work(run / name, report)


def _make_ready(sharding: str) -> None:
    from pipeline.accelerate_environment import tell_accelerate
    from stages.distributed.ranks import let_ranks_run_on_cpu

    # DeepSpeed calls what torch has renamed; nothing a user could do about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    tell_accelerate(sharding)
    let_ranks_run_on_cpu()


def _say(lines: TextIO, kind: str, value: Any) -> None:
    print(json.dumps({kind: value}), file=lines, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
