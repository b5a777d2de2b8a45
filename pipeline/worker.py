"""One of the processes that `pipeline/launch.py` starts: `python -m pipeline.worker RUN STAGE`.

It reads the run's config and does one stage's work; the run's folder is held by the process that
launched it. Bad input is one line and exit code 2, as everywhere.
"""

import json
import os
import sys
from pathlib import Path

from pipeline.config_file import load_config
from pipeline.failures import one_line
from pipeline.launch import FAILURE, STEP
from pipeline.plan import plan
from stages.cpu_ranks import let_ranks_run_on_cpu
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
    let_ranks_run_on_cpu()
    stages = plan(load_config(run / "config.yaml"), run)
    stage = next(stage for stage in stages if stage.name == name)
    stage.work(run / name, report)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
