"""Training over several processes: a stage's work handed to `accelerate launch`.

The command that the user started keeps the run's folder, the manifest and the display; the
processes it launches only do the stage's work (`pipeline/worker.py`), and the first of them writes
every step as a line of JSON on its standard output.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from pipeline.run import Stage
from stages.progress import Report, Step

Sharding = Literal["none", "ddp", "zero2", "zero3"]
STEP = "step: "  # how a worker's line of progress begins
FAILURE = "failure: "  # and the line about a failure that is not our bug
STOP_AFTER_S = 20.0


@dataclass(frozen=True, slots=True)
class Launch:
    """How the training stages are spread: the kind of sharding and the number of processes."""

    sharding: Sharding
    processes: int


def chosen(sharding: Sharding, processes: int) -> Launch | None:
    """The launch that the command line asks for; None for one plain process."""
    if processes < 1:
        raise ValueError(f"--processes is {processes}; expected at least 1")
    if sharding == "none" and processes > 1:
        raise ValueError(f"--processes {processes} needs --sharding; expected ddp, zero2 or zero3")
    return None if sharding == "none" else Launch(sharding, processes)


def over_processes(stage: Stage, run: Path, launch: Launch) -> Stage:
    """The same stage with its work done by launched processes."""

    def work(_: Path, report: Report) -> None:
        command = _command(stage.name, run, launch)
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=_environment(launch.processes)
        ) as process:
            try:
                failures = _listen(process, report)
            except BaseException:
                _stop(process)
                raise
        if failures:
            raise ValueError(failures[0])
        if process.returncode:
            raise RuntimeError(f"{stage.name}: a process ended with code {process.returncode}")

    return replace(stage, work=work, launched=asdict(launch))


def configs_folder() -> Path:
    """Where the shipped configs are: in a checkout beside the packages, else inside `pipeline`."""
    here = Path(__file__).parent
    beside = here.parent / "configs"
    return beside if beside.is_dir() else here / "shipped_configs"


def _command(stage: str, run: Path, launch: Launch) -> list[str]:
    folder = configs_folder() / "accelerate"
    on_cpu = launch.sharding == "ddp" and not _has_accelerator()
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(folder / ("cpu2.yaml" if on_cpu else f"{launch.sharding}.yaml"))),
        *("--num_processes", str(launch.processes)),
        *("--main_process_port", str(_free_port())),
    ]
    if launch.sharding.startswith("zero"):
        command += ["--deepspeed_config_file", str(folder / f"{launch.sharding}.json")]
    return [*command, "-m", "pipeline.worker", str(run), stage]


def _environment(processes: int) -> Mapping[str, str]:
    threads = max(1, (os.cpu_count() or 1) // processes)
    device = {} if _has_accelerator() else {"DS_ACCELERATOR": "cpu"}
    return {"OMP_NUM_THREADS": str(threads), **device, **os.environ}


def _listen(process: subprocess.Popen[str], report: Report) -> list[str]:
    """Pass every step on until all processes ended; return the failures that users can mend."""
    assert process.stdout is not None
    failures = []
    for line in process.stdout:
        if line.startswith(STEP):
            row = json.loads(line.removeprefix(STEP))
            report(Step(row["done"], row["total"], row["metrics"]))
        elif line.startswith(FAILURE):
            failures.append(line.removeprefix(FAILURE).strip())
        else:
            print(line, end="", file=sys.stderr)
    return failures


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_AFTER_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _has_accelerator() -> bool:
    import torch

    return torch.accelerator.is_available()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
