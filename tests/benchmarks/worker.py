"""The protocol of every measured process: wait for "go", do one step, send its cost.

It speaks JSON lines on its first standard output; what libraries print goes to stderr. Two such
processes are driven in turn (`alternate.py`), so that a busy machine is equally busy for both.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from stages.distributed.memory import keep_freed_memory


def step_protocol() -> tuple[Callable[[dict[str, Any]], None], Callable[[], bool]]:
    """Return `send`, a line to the driver, and `wait_for_go` (False: it is over).

    Where there is no GPU, every such process keeps freed memory, ours and the peers': what the
    kernel takes to hand out pages anew is the machine's, and much on a virtual one.
    """
    if not torch.cuda.is_available():
        keep_freed_memory()
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(row: dict[str, Any]) -> None:
        print(json.dumps(row), file=lines, flush=True)

    def wait_for_go() -> bool:
        return sys.stdin.readline().strip() == "go"

    return send, wait_for_go


class Meter:
    """Wall and CPU seconds since it was made or read last, and the process's peak memory.

    On a GPU, what was asked of it is waited for, and the memory is what torch held there.
    """

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Seconds since the last reading."""
        on_gpu = torch.cuda.is_initialized()
        if on_gpu:
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        row = {
            "wall_s": wall - self._wall,
            "cpu_s": cpu - self._cpu,
            "peak_mib": torch.cuda.max_memory_allocated() / 2**20
            if on_gpu
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return row
