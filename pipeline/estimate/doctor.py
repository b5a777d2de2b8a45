"""What this machine can run: found out, not guessed."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from pipeline.runs.manifest import code_version

WANTED = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "gradio", "vllm")


def findings() -> Iterator[tuple[str, str]]:
    """Name and finding, line by line."""
    yield "rlhf", code_version()
    yield "Python", f"{platform.python_version()} on {platform.platform(terse=True)}"
    yield "cores", f"{_num_cores()} for this process"
    yield "memory", _memory()
    yield "disk", f"{shutil.disk_usage('.').free / 2**30:.0f} GiB free here"
    for name in WANTED:
        yield name, _version(name)
    yield from _accelerators()
    browser = shutil.which("chromium")
    yield "chromium", browser or "not found: the browser tests are skipped"


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _memory() -> str:
    found = {}
    path = Path("/proc/meminfo")
    if not path.is_file():
        return "unknown"
    for line in path.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        found[name] = int(value.split()[0]) / 2**20
    free = f"{found['MemAvailable']:.1f} of {found['MemTotal']:.1f} GiB free"
    return f"{free}; the quickstart needs 2 GiB"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _accelerators() -> Iterator[tuple[str, str]]:
    import torch

    if not torch.cuda.is_available():
        yield "accelerator", "none: models train on the CPU in float32"
        yield "sharding", "every --sharding works on the CPU (gloo), for tests and small models"
        return
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        yield f"GPU {index}", f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
    yield "bfloat16", "yes" if torch.cuda.is_bf16_supported() else "no"
