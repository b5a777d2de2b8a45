"""One of the processes that `pipeline/launch.py` starts: `python -m pipeline.worker RUN STAGE`.

It reads the run's config and does one stage's work; the run's folder is held by the process that
launched it. Bad input is one line and exit code 2, as everywhere.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from pipeline.config_file import load_config
from pipeline.failures import one_line
from pipeline.launch import FAILURE, STEP
from pipeline.plan import plan
from stages.progress import Report, Step, silent


def main(run: Path, name: str) -> int:
    """Do the stage's work as one of several ranks; return the exit code."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not mix with the lines of progress

    def tell(step: Step) -> None:
        row = {"done": step.done, "total": step.total, "metrics": dict(step.metrics)}
        print(f"{STEP}{json.dumps(row)}", file=lines, flush=True)

    try:
        _work(run, name, tell if os.environ.get("RANK", "0") == "0" else silent)
    except Exception as error:  # the border: what is not the user's to mend is raised again
        line = one_line(error, run)
        if line is None:
            raise
        print(f"{FAILURE}{line}", file=lines, flush=True)
        return 2
    return 0


def _work(run: Path, name: str, report: Report) -> None:
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        _let_deepspeed_run_on_cpu()
    stages = plan(load_config(run / "config.yaml"), run)
    stage = next(stage for stage in stages if stage.name == name)
    stage.work(run / name, report)


def _let_deepspeed_run_on_cpu() -> None:
    """Without an accelerator: gloo as the backend, and no compiler needed.

    DeepSpeed would compile its shared-memory operator at every start (minutes, and a failure where
    there is no compiler), and accelerate would pick no backend at all, so that every rank believes
    to be alone.
    """
    import torch

    if torch.accelerator.is_available():
        return
    import deepspeed.ops
    from accelerate.state import PartialState

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    original = PartialState._prepare_backend

    def with_gloo(
        state: Any, cpu: bool = False, sagemaker_dp: bool = False, backend: str | None = None
    ) -> tuple[str, Any]:
        found, distributed_type = original(state, cpu, sagemaker_dp, backend)
        return found or "gloo", distributed_type

    PartialState._prepare_backend = with_gloo


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
