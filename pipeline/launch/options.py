"""The spreading of training over processes, as the command line or another launcher asks for it.

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

Sharding = Literal["none", "ddp", "zero1", "zero2", "zero3", "zero3-offload", "fsdp2"]
SLURM_PORTS = 20_000  # rank 0 of a job listens within as many ports above this number


@dataclass(frozen=True, slots=True)
class Launch:
    """The spreading of the training stages.

    `rank` is this process's own where another launcher started it as one rank of `num_ranks`.
    `sharding` is the name of a shipped accelerate config, or the path of the user's own.
    """

    sharding: str
    num_ranks: int
    rank: int | None = None

    def manifest(self) -> dict[str, Any]:
        """Return what an artefact's manifest records of it."""
        return {"sharding": self.sharding, "processes": self.num_ranks}


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
    configured = 1 if accelerate_config is None else _configured_processes(accelerate_config)
    spread = sharding if accelerate_config is None else str(accelerate_config.absolute())
    environment = {**slurm_environment(environment), **environment}
    if "RANK" in environment and (num_ranks := int(environment.get("WORLD_SIZE", 1))) > 1:
        rank = int(environment["RANK"])
        if processes is not None:
            raise ValueError(
                "--processes starts processes, but torchrun, accelerate or Slurm started this one "
                f"as rank {rank} of {num_ranks}; expected one of the two"
            )
        return Launch(spread, num_ranks, rank)
    num_ranks = processes or configured
    if spread == "none" and num_ranks > 1:
        raise ValueError(
            f"--processes {num_ranks} needs --sharding; expected ddp, zero1, zero2, zero3, "
            "zero3-offload or fsdp2"
        )
    return None if spread == "none" else Launch(spread, num_ranks)


def slurm_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return torch's variables for a task of `srun`, nothing for Slurm's batch script."""
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return {}
    tasks = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    job = int(environment.get("SLURM_JOB_ID", 0))
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": tasks[0] if tasks else "1",
        "MASTER_ADDR": first_node(environment.get("SLURM_STEP_NODELIST", "localhost")),
        "MASTER_PORT": str(SLURM_PORTS + job % SLURM_PORTS),
    }


def first_node(nodes: str) -> str:
    """Return the first name in Slurm's short form: `gpu[007-009,12],login1` gives `gpu007`."""
    match = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\])?([^\[,]*)", nodes)
    return "" if match is None else "".join(part or "" for part in match.groups())


def _configured_processes(accelerate_config: Path) -> int:
    from pipeline.config.loading import load_mapping

    config = load_mapping(accelerate_config)
    if config.get("num_machines", 1) > 1:
        raise ValueError(
            f"{accelerate_config}: num_machines is {config['num_machines']}; expected 1, or "
            "`accelerate launch` to start this command on every machine"
        )
    return int(config.get("num_processes", 1))
