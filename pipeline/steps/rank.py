"""One rank of a stage: `python -m pipeline.steps.rank RUN STAGE SHARDING LAUNCHER`.

`pipeline/launch/elastic.py` starts it, with the number of the process that it ends with. Its
failure goes to torch's error file, its steps to torch's store.
"""

import os
import re
import sys
import time
import warnings
from pathlib import Path

from pipeline.config.loading import load_config
from pipeline.config.shipped import accelerate_config
from pipeline.launch.worker import end_with_launcher, step_sender
from pipeline.runs.failures import INPUT_ERROR, LOST_CONTACT, one_line
from pipeline.steps.order import stages_until
from stages.progress import Report, silent

VICTIM_FIRST_S = 3.0  # for the launcher to notice the rank that this one lost
LOST = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|[Tt]imed out|[Cc]onnection refused|NCCL|Socket|"
    r"connectFullMesh|recvValue|remote process|store->"
)


def stage_work(run: Path, name: str, report: Report) -> None:
    """Do a stage's work by the config in a run's folder, in a process that knows its rank."""
    stages_until(load_config(run / "config.yaml"), run, name)[-1].run(run / name, report)


def run_rank(run: Path, stage: str, sharding: str, launcher: int) -> None:
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
        stage_work(run, stage, step_sender() if os.environ["RANK"] == "0" else silent)
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


if __name__ == "__main__":
    _run, _stage, _sharding, _launcher = sys.argv[1:]
    run_rank(Path(_run), _stage, _sharding, int(_launcher))
