"""This machine: what it can run, its free memory, and its speed, measured in a second."""

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil
import torch

from pipeline.runs.manifest import code_version
from stages.distributed.memory import free_memory

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "gradio", "vllm")
SIDE = 1024  # of the matrices on a CPU; eight times that on a GPU
MEASURE_S = 0.4
NUMBERS = 64 * 2**20  # that are read


@dataclass(frozen=True, slots=True)
class Machine:
    """`room` is the free memory of one device in bytes, `disk` is free here."""

    device: str
    on_gpu: bool
    devices: int
    room: int
    disk: int
    flops_per_s: float
    read_bytes_per_s: float


def this_machine(folder: Path) -> Machine:
    """Return memory and disk as they are now, and speeds in float32, in which stages train."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    threads = f"CPU, {torch.get_num_threads()} threads"
    side = SIDE * 8 if on_gpu else SIDE
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    numbers = torch.ones(NUMBERS, device=device)
    return Machine(
        device=torch.cuda.get_device_name() if on_gpu else threads,
        on_gpu=on_gpu,
        devices=torch.cuda.device_count() if on_gpu else 1,
        room=free_memory(device),
        disk=shutil.disk_usage(folder).free,
        flops_per_s=2.0 * side**3 / _seconds(lambda: torch.matmul(a, b), device),
        read_bytes_per_s=NUMBERS * 4.0 / _seconds(numbers.sum, device),
    )


def findings() -> Iterator[tuple[str, str]]:
    """Yield name and finding, line by line."""
    yield "rlhf", code_version()
    yield "Python", f"{platform.python_version()} on {platform.platform(terse=True)}"
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    yield "cores", f"{cores} for this process"
    memory = psutil.virtual_memory()
    free = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    yield "memory", f"{free}; the quickstart needs 2 GiB"
    yield "disk", f"{shutil.disk_usage('.').free / 2**30:.0f} GiB free here"
    for name in LIBRARIES:
        yield name, _version(name)
    yield from _accelerators()
    browser = shutil.which("chromium")
    yield "chromium", browser or "not found: the browser tests are skipped"


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
        properties = torch.cuda.get_device_properties(index)
        yield f"GPU {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    yield "bfloat16", "yes" if torch.cuda.is_bf16_supported() else "no"


def _seconds(work: Callable[[], torch.Tensor], device: torch.device) -> float:
    """Return the time of the quickest of as many runs as fit into MEASURE_S, after a first one."""
    best, ends = float("inf"), None
    while ends is None or time.perf_counter() < ends:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        duration = time.perf_counter() - start
        best = best if ends is None else min(best, duration)
        ends = time.perf_counter() + MEASURE_S if ends is None else ends
    return best
