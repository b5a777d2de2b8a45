"""How much memory this process may still take."""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from stages.freed_memory import give_back_freed_memory

PROC, CGROUPS = Path("/proc/self"), Path("/sys/fs/cgroup")
USED = 0.8  # of what is free; the rest is for what allocators waste and libraries take


def usable(free: int, to_come: int) -> int:
    """Of `free` bytes, what passes may take where so many are `to_come` beside them."""
    return int(USED * (free - to_come))


def free_memory(device: torch.device) -> int:
    """Bytes that are free on `device`; of main memory, a rank's share of its host.

    On a GPU that counts what torch holds there unused. Of main memory it is the least of what the
    kernel calls available, what a container may still take, and what `ulimit -v` leaves, once this
    process has given back what it kept of freed memory.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    give_back_freed_memory()
    available: int = psutil.virtual_memory().available
    on_host = min(available, *_left_in_cgroups(PROC, CGROUPS))
    return min(on_host // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), *_left_of_ulimit())


def _left_in_cgroups(proc: Path, cgroups: Path) -> Iterator[int]:
    """What every memory limit around this process leaves: of cgroups, version 2 or 1."""
    try:
        lines = (proc / "cgroup").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, kinds, name = line.split(":", 2)
        if kinds == "":
            root, limit, used, cache = cgroups, "memory.max", "memory.current", "inactive_file"
        elif kinds == "memory":
            root, limit = cgroups / "memory", "memory.limit_in_bytes"
            used, cache = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        folder = root / name.lstrip("/")
        for inside in (folder, *folder.parents):
            if inside.is_relative_to(root) and (inside / limit).is_file():
                with suppress(OSError, ValueError):  # hidden from those inside
                    yield from _left(inside / limit, inside / used, inside / "memory.stat", cache)


def _left(limit: Path, used: Path, stat: Path, cache: str) -> Iterator[int]:
    """Bytes under one limit; cached files are given back before anything is refused."""
    most = limit.read_text(encoding="ascii").strip()
    if most == "max":
        return
    counts = dict(line.split() for line in stat.read_text(encoding="ascii").splitlines())
    yield max(0, int(most) - int(used.read_text(encoding="ascii")) + int(counts.get(cache, 0)))


def _left_of_ulimit() -> Iterator[int]:
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    yield sys.maxsize if most == resource.RLIM_INFINITY else max(0, most - _addressed())


def _addressed() -> int:
    """Bytes of addresses this process has asked for."""
    found: int = psutil.Process().memory_info().vms
    return found
