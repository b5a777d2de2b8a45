"""What this machine is: its memory, and how fast it multiplies and reads, measured in a second."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

SIDE = 1024  # of the matrices on a CPU; eight times that on a GPU
LASTS_S = 0.4
COPIED = 64 * 2**20  # numbers


@dataclass(frozen=True, slots=True)
class Machine:
    """`room` is the memory of one device in bytes that is free to use, `disk` is free here."""

    device: str
    on_gpu: bool
    devices: int
    room: int
    disk: int
    flops_per_s: float
    read_bytes_per_s: float


def this_machine(folder: Path) -> Machine:
    """Memory and disk as they are now; speeds measured in float32, in which stages train."""
    on_gpu = torch.cuda.is_available()
    where = torch.device("cuda" if on_gpu else "cpu")
    return Machine(
        device=torch.cuda.get_device_name()
        if on_gpu
        else f"CPU, {torch.get_num_threads()} threads",
        on_gpu=on_gpu,
        devices=torch.cuda.device_count() if on_gpu else 1,
        room=torch.cuda.mem_get_info()[0] if on_gpu else _available(),
        disk=shutil.disk_usage(folder).free,
        flops_per_s=_matrix_product(where),
        read_bytes_per_s=_reading(where),
    )


def _matrix_product(where: torch.device) -> float:
    side = SIDE * 8 if where.type == "cuda" else SIDE
    a, b = torch.randn(side, side, device=where), torch.randn(side, side, device=where)
    return 2.0 * side**3 / _seconds(lambda: torch.matmul(a, b), where)


def _reading(where: torch.device) -> float:
    numbers = torch.ones(COPIED, device=where)
    return COPIED * 4.0 / _seconds(numbers.sum, where)


def _seconds(work: Callable[[], torch.Tensor], where: torch.device) -> float:
    """Of the quickest of as many runs as fit into LASTS_S; the first one only warms up."""
    best, until = float("inf"), None
    while until is None or time.perf_counter() < until:
        start = time.perf_counter()
        work()
        if where.type == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - start
        best = best if until is None else min(best, took)
        until = time.perf_counter() + LASTS_S if until is None else until
    return best


def _available() -> int:
    path = Path("/proc/meminfo")
    if not path.is_file():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable")
