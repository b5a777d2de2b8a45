"""How training is spread over processes, as the command line or another launcher asks for it.

    rlhf sft CONFIG --sharding zero2 --processes 4                  this command starts the ranks
    torchrun --nproc-per-node 4 -m pipeline.cli sft CONFIG --sharding zero2
    srun --ntasks 4 rlhf sft CONFIG --sharding zero2                each process is one rank
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from reward_models.one_line import first_line

Sharding = Literal["none", "ddp", "zero1", "zero2", "zero3", "zero3-offload", "fsdp2"]
SLURM_PORTS = 20_000  # rank 0 of a job listens within as many ports above this number


class RankFailed(Exception):  # noqa: N818 - a rank failed, not this process
    """A rank is gone and all others were stopped. `code` is the command's exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Launch:
    """How the training stages are spread.

    `rank` is this process's own where another launcher started it as one rank of `num_ranks`.
    `accelerate_config` is a file of the user's own in place of a shipped one.
    """

    sharding: Sharding
    num_ranks: int
    rank: int | None = None
    accelerate_config: Path | None = None

    @property
    def accelerate(self) -> str:
        """The sharding's name, or the path of the user's accelerate config."""
        path = self.accelerate_config
        return self.sharding if path is None else str(path.absolute())

    def manifest(self) -> dict[str, Any]:
        """Return what an artefact's manifest records of it."""
        spread = {"sharding": self.sharding, "processes": self.num_ranks}
        return spread | ({"accelerate_config": self.accelerate} if self.accelerate_config else {})


def choose_launch(
    sharding: Sharding,
    processes: int | None = None,
    accelerate_config: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Launch | None:
    """Return the launch that is asked for, or None for one plain process."""
    if sharding != "none" and accelerate_config is not None:
        raise ValueError(
            f"--sharding {sharding} and --accelerate-config both; expected one of them"
        )
    configured = _configured_processes(accelerate_config)
    joined = rank_environment(environment)
    if joined:
        rank, num_ranks = int(joined["RANK"]), int(joined["WORLD_SIZE"])
        if processes is not None:
            raise ValueError(
                "--processes starts processes, but torchrun, accelerate or Slurm started this one "
                f"as rank {rank} of {num_ranks}; expected one of the two"
            )
        return Launch(sharding, num_ranks, rank, accelerate_config)
    num_ranks = processes or configured or 1
    if sharding == "none" and accelerate_config is None:
        if num_ranks > 1:
            raise ValueError(
                f"--processes {num_ranks} needs --sharding; expected ddp, zero1, zero2, zero3, "
                "zero3-offload or fsdp2"
            )
        return None
    return Launch(sharding, num_ranks, None, accelerate_config)


def rank_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return torch's variables for a process that a launcher started as one rank, else nothing.

    Only what `srun` sets for its tasks counts as Slurm, not what a batch script finds.
    """
    if _number(environment, "SLURM_STEP_NUM_TASKS", "1") > 1 and "RANK" not in environment:
        environment = {**_from_slurm(environment), **environment}
    num_ranks = _number(environment, "WORLD_SIZE", "1")
    if num_ranks == 1 or "RANK" not in environment:
        return {}
    if "MASTER_ADDR" not in environment:
        raise ValueError(
            "WORLD_SIZE and RANK are set, but not MASTER_ADDR; expected the host of rank 0"
        )
    if (rank := _number(environment, "RANK", "0")) >= num_ranks:
        raise ValueError(
            f"RANK is {rank}; expected 0 to {num_ranks - 1}, as WORLD_SIZE is {num_ranks}"
        )
    defaults = {"MASTER_PORT": "29500", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", *defaults)
    joined = {name: environment.get(name, defaults.get(name, "")) for name in names}
    for name in defaults:
        _number(joined, name, "0")
    return joined


def _from_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    nodes = environment.get("SLURM_STEP_NODELIST", "localhost")
    tasks = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    job = _number(environment, "SLURM_JOB_ID", "0")
    return {
        "RANK": environment.get("SLURM_PROCID", "0"),
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": tasks[0] if tasks else "1",
        "MASTER_ADDR": first_node(nodes),
        "MASTER_PORT": str(SLURM_PORTS + job % SLURM_PORTS),
    }


def first_node(nodes: str) -> str:
    """Return the first name in Slurm's short form: `gpu[007-009,12],login1` gives `gpu007`."""
    match = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\])?([^\[,]*)", nodes)
    return "" if match is None else "".join(part or "" for part in match.groups())


def _number(environment: Mapping[str, str], name: str, default: str) -> int:
    value = environment.get(name, default)
    if not value.isdigit():
        raise ValueError(f"{name} is '{value}' in the environment; expected a number")
    return int(value)


def _configured_processes(accelerate_config: Path | None) -> int | None:
    if accelerate_config is None:
        return None
    try:
        config = yaml.safe_load(accelerate_config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{accelerate_config}: not a config of accelerate ({first_line(error)})"
        ) from None
    if not isinstance(config, dict) or "distributed_type" not in config:
        raise ValueError(
            f"{accelerate_config}: no distributed_type; expected a file of `accelerate config`"
        )
    if int(config.get("num_machines", 1)) > 1:
        raise ValueError(
            f"{accelerate_config}: num_machines is {config['num_machines']}; expected 1, or this "
            "command started by accelerate launch on every machine"
        )
    return int(config.get("num_processes", 1))
