"""This machine: versions, memory, disk, and its speed, measured in a second."""

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata

import psutil
import torch

from pipeline.runs.manifest import code_version

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "gradio", "vllm")

SIDE = 1024  # of the matrices on a CPU; eight times that on a GPU
LASTS_S = 0.4
CONTEXT = 600 * 2**20  # of CUDA and its libraries, in a GPU's memory
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


def findings() -> Iterator[tuple[str, str]]:
    """Yield name and value of everything that `rlhf doctor` prints about the machine."""
    yield "rlhf", code_version()
    yield "Python", f"{platform.python_version()} on {platform.platform(terse=True)}"
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    yield "cores", f"{cores} for this process"
    memory = psutil.virtual_memory()
    free, total = memory.available / 2**30, memory.total / 2**30
    yield "memory", f"{free:.1f} of {total:.1f} GiB free; the quickstart needs 2 GiB"
    yield "disk", f"{shutil.disk_usage('.').free / 2**30:.0f} GiB free here"
    for name in LIBRARIES:
        yield name, _version(name)
    yield from _accelerators()
    yield "chromium", shutil.which("chromium") or "not found: the browser tests are skipped"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _accelerators() -> Iterator[tuple[str, str]]:
    if not torch.cuda.is_available():
        yield "accelerator", "none: models train on the CPU in float32"
        yield "sharding", "every --sharding works on the CPU (gloo), for tests and small models"
        return
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        yield f"GPU {index}", f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
    yield "bfloat16", "yes" if torch.cuda.is_bf16_supported() else "no"


def this_machine() -> Machine:
    """Return memory and disk as they are now, and speeds in float32, in which stages train."""
    on_gpu = torch.cuda.is_available()
    where = torch.device("cuda" if on_gpu else "cpu")
    return Machine(
        device=torch.cuda.get_device_name()
        if on_gpu
        else f"CPU, {torch.get_num_threads()} threads",
        on_gpu=on_gpu,
        devices=torch.cuda.device_count() if on_gpu else 1,
        room=torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available,
        disk=shutil.disk_usage(".").free,
        flops_per_s=_matrix_product(where),
        read_bytes_per_s=_read_speed(where),
    )


def a_card(gib: float) -> Machine:
    """Return a GPU of so much memory that is not here: its speed is not known."""
    return Machine(
        device=f"a GPU of {gib:g} GiB",
        on_gpu=True,
        devices=1,
        room=int(gib * 2**30) - CONTEXT,
        disk=shutil.disk_usage(".").free,
        flops_per_s=0.0,
        read_bytes_per_s=0.0,
    )


def _matrix_product(where: torch.device) -> float:
    side = SIDE * 8 if where.type == "cuda" else SIDE
    a, b = torch.randn(side, side, device=where), torch.randn(side, side, device=where)
    return 2.0 * side**3 / _seconds(lambda: torch.matmul(a, b), where)


def _read_speed(where: torch.device) -> float:
    numbers = torch.ones(COPIED, device=where)
    return COPIED * 4.0 / _seconds(numbers.sum, where)


def _seconds(work: Callable[[], torch.Tensor], where: torch.device) -> float:
    """Return the time of the fastest run within LASTS_S; the first run is a warm-up."""
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
