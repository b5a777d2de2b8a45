"""Which ranks of a job this command does.

A job has one member a launching command: alone it does all ranks; with --hosts each host has one;
under torchrun, `accelerate launch` or Slurm each of their processes is one and does one rank. The
first member leads: it keeps the run's folder, the manifest and the display.
"""

import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.hosts import Host

PORT = 29500  # where the first host listens, as torch's default
SLURM_PORTS = 20_000  # a job's own port lies within as many above this number


@dataclass(frozen=True, slots=True)
class Place:
    """A member's part: ranks `first_rank` up to `first_rank + processes`, of `world`.

    `local_rank` is the first one's number on its machine, which has `on_machine` ranks. Members
    talk to the first one at `leader`:`port`. `host` is what this machine is called in messages.
    """

    member: int
    members: int
    first_rank: int
    processes: int
    world: int
    local_rank: int
    on_machine: int
    leader: str
    port: int
    host: str

    @property
    def ranks(self) -> range:
        """The ranks of this member."""
        return range(self.first_rank, self.first_rank + self.processes)


def alone(processes: int) -> Place:
    """All ranks on this machine, under this command."""
    host = socket.gethostname()
    return Place(0, 1, 0, processes, processes, 0, processes, "127.0.0.1", 0, host)


def on_host(hosts: Sequence[Host], number: int, environment: Mapping[str, str]) -> Place:
    """The part of the host with this number, counted from 0, in a hosts file."""
    if not 0 <= number < len(hosts):
        raise ValueError(
            f"--host-rank is {number}; expected 0 to {len(hosts) - 1}, the hosts in the file"
        )
    before, here = sum(host.slots for host in hosts[:number]), hosts[number]
    world = sum(host.slots for host in hosts)
    port = _number(environment, "MASTER_PORT", PORT)
    return Place(
        member=number,
        members=len(hosts),
        first_rank=before,
        processes=here.slots,
        world=world,
        local_rank=0,
        on_machine=here.slots,
        leader=hosts[0].name,
        port=port,
        host=here.name,
    )


def launched_already(environment: Mapping[str, str]) -> Place | None:
    """The part that torchrun, accelerate, a pod's template or Slurm gave to this process.

    None where nobody started it as one of several. What a batch script of Slurm finds does not
    count, only what `srun` tells its tasks. ValueError where a part of it is missing.
    """
    if _number(environment, "WORLD_SIZE", 1) > 1 and "RANK" in environment:
        return _one_rank(environment)
    if _number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1:
        return _one_rank(_from_slurm(environment))
    return None


def _one_rank(environment: Mapping[str, str]) -> Place:
    if "MASTER_ADDR" not in environment:
        raise ValueError(
            "WORLD_SIZE and RANK are set, but not MASTER_ADDR; expected the first rank's host"
        )
    rank, world = _number(environment, "RANK", 0), _number(environment, "WORLD_SIZE", 1)
    if not 0 <= rank < world:
        raise ValueError(f"RANK is {rank}; expected 0 to {world - 1}, as WORLD_SIZE is {world}")
    return Place(
        member=rank,
        members=world,
        first_rank=rank,
        processes=1,
        world=world,
        local_rank=_number(environment, "LOCAL_RANK", 0),
        on_machine=_number(environment, "LOCAL_WORLD_SIZE", 1),
        leader=environment["MASTER_ADDR"],
        port=_number(environment, "MASTER_PORT", PORT) + 1,  # the first is the launcher's own
        host=socket.gethostname(),
    )


def _from_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """What Slurm tells a task, in torch's words."""
    port = SLURM_PORTS + _number(environment, "SLURM_JOB_ID", 0) % SLURM_PORTS
    nodes = environment.get("SLURM_STEP_NODELIST", "localhost")
    on_node = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    return {
        "RANK": environment.get("SLURM_PROCID", "0"),
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": on_node[0] if on_node else "1",
        "MASTER_ADDR": environment.get("MASTER_ADDR", first_node(nodes)),
        "MASTER_PORT": environment.get("MASTER_PORT", str(port)),
    }


def first_node(nodes: str) -> str:
    """The first name of Slurm's short form: `gpu[007-009,12],login1` gives `gpu007`."""
    match = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\])?([^\[,]*)", nodes)
    return "" if match is None else "".join(part or "" for part in match.groups())


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    told = environment.get(name, str(default))
    if not told.isdigit():
        raise ValueError(f"{name} is '{told}' in the environment; expected a number")
    return int(told)
