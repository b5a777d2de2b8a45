"""How training is spread: what the command line asks for, or what another launcher has done.

    rlhf sft CONFIG --sharding zero2 --processes 4            this command starts the ranks
    rlhf sft CONFIG --sharding zero2 --hosts hosts.txt        and a command like it on every host
    torchrun --nproc-per-node 4 -m pipeline.cli.app sft CONFIG --sharding zero2
    srun --ntasks 4 rlhf sft CONFIG --sharding zero2          each of these is started as one rank

The ranks meet, reduce and shard by torch, DeepSpeed and accelerate. A run has many stages and one
display, folder and manifest; that is why the launching command stays, starts fresh ranks for each
stage that trains, and tells what happened to them, where torchrun would start one script.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline.hosts import Host, read_hosts
from pipeline.placement import Place, alone, launched_already, on_host
from reward_models.model_files import first_line

Sharding = Literal["none", "ddp", "zero1", "zero2", "zero3", "zero3-offload", "fsdp2"]
WAYS = "ddp, zero1, zero2, zero3, zero3-offload or fsdp2"


@dataclass(frozen=True, slots=True)
class Launch:
    """How the training stages are spread, and this command's part in it.

    `accelerate_config` is a file of the user's own in place of a shipped one. `by_hand`: the
    commands on other hosts are started by somebody else.
    """

    sharding: Sharding
    place: Place
    hosts: tuple[Host, ...] = ()
    accelerate_config: Path | None = None
    by_hand: bool = False

    @property
    def told(self) -> str:
        """The sharding, or the path of the user's accelerate config, as ranks are told."""
        own = self.accelerate_config
        return self.sharding if own is None else str(own.absolute())

    def in_manifest(self) -> dict[str, Any]:
        """What an artefact's manifest says of it."""
        way = {"sharding": self.sharding, "processes": self.place.world}
        own = {} if self.accelerate_config is None else {"accelerate_config": self.told}
        return {
            **way,
            **own,
            **({"hosts": [host.name for host in self.hosts]} if self.hosts else {}),
        }


def chosen(
    sharding: Sharding,
    processes: int | None = None,
    hosts: Path | None = None,
    host_rank: int | None = None,
    accelerate_config: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Launch | None:
    """The launch that is asked for; None for one plain process. ValueError for what cannot be."""
    if sharding != "none" and accelerate_config is not None:
        raise ValueError(
            f"--sharding {sharding} and --accelerate-config both; expected one of them"
        )
    if host_rank is not None and hosts is None:
        raise ValueError(f"--host-rank {host_rank} needs --hosts, the file with all of them")
    if processes is not None and processes < 1:
        raise ValueError(f"--processes is {processes}; expected at least 1")
    told = _own_processes(accelerate_config)
    already = launched_already(environment)
    if already is not None:
        if processes is not None or hosts is not None:
            name = "--processes" if hosts is None else "--hosts"
            raise ValueError(
                f"{name} starts processes, but torchrun, accelerate or Slurm started this one as "
                f"rank {already.first_rank} of {already.world}; expected one of the two"
            )
        return Launch(sharding, already, accelerate_config=accelerate_config)
    is_spread = sharding != "none" or accelerate_config is not None
    if hosts is not None:
        if processes is not None:
            raise ValueError("--processes and --hosts both; expected slots=N in the hosts file")
        if not is_spread:
            raise ValueError(f"--hosts {hosts} needs --sharding; expected {WAYS}")
        found = read_hosts(hosts)
        place = on_host(found, host_rank or 0, environment)
        return Launch(sharding, place, found, accelerate_config, host_rank is not None)
    wanted = processes or told or 1
    if not is_spread and wanted > 1:
        raise ValueError(f"--processes {wanted} needs --sharding; expected {WAYS}")
    place = alone(wanted)
    return Launch(sharding, place, (), accelerate_config) if is_spread else None


def _own_processes(accelerate_config: Path | None) -> int | None:
    """The number of processes in the user's accelerate config; ValueError where it is none."""
    if accelerate_config is None:
        return None
    try:
        found = yaml.safe_load(accelerate_config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        why = first_line(error)
        raise ValueError(f"{accelerate_config}: not a config of accelerate ({why})") from None
    if not isinstance(found, dict) or "distributed_type" not in found:
        raise ValueError(
            f"{accelerate_config}: no distributed_type; expected a file of `accelerate config`"
        )
    if int(found.get("num_machines", 1)) > 1:
        raise ValueError(
            f"{accelerate_config}: num_machines is {found['num_machines']}; expected 1 there, and "
            "the hosts in --hosts"
        )
    return int(found.get("num_processes", 1))
