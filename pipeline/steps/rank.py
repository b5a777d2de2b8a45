"""One rank of a stage: `python -m pipeline.steps.rank RUN STAGE SHARDING LAUNCHER`.

`pipeline/launch/elastic.py` starts it, with the number of the process that it ends with.
"""

import sys
from functools import partial
from pathlib import Path

from pipeline.config.loading import load_config
from pipeline.launch.worker import run_rank
from pipeline.steps.order import stages_until
from stages.progress import Report


def stage_work(run: Path, name: str, report: Report) -> None:
    """Do a stage's work by the config in a run's folder, in a process that knows its rank."""
    stages_until(load_config(run / "config.yaml"), run, name)[-1].run(run / name, report)


if __name__ == "__main__":
    _run, _name, _sharding, _launcher = sys.argv[1:]
    run_rank(
        partial(stage_work, Path(_run), _name),
        sharding=_sharding,
        launcher=int(_launcher),
        run=Path(_run),
    )
