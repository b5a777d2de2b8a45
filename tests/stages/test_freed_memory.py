"""Freed memory: kept where that is asked for, counted as free by whoever asks how much is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SIZE = 64 * 2**20  # bytes of a tensor, more than glibc ever keeps by itself
HELD = f"""
import resource, sys
import psutil, torch
from stages.distributed.memory import free_memory
from stages.distributed.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()

def pages(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones({SIZE}, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

pages(24)  # until glibc finds what it kept: freed neighbours merge after some turns
print(pages(8))
held = psutil.Process().memory_info().rss
free_memory(torch.device("cpu"))
print(held - psutil.Process().memory_info().rss)
"""


def _run(how: str, **environment: str) -> tuple[int, int]:
    """Pages asked of the kernel by eight tensors, and bytes given back when asked what is free."""
    steps = subprocess.run(
        [sys.executable, "-c", HELD, how],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    pages, given_back = steps.stdout.split()
    return int(pages), int(given_back)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_kept_until_somebody_asks_how_much_is_free():
    page = os.sysconf("SC_PAGE_SIZE")
    pages, _ = _run("as ever")
    assert pages >= 8 * SIZE / page * 0.9
    pages, _ = _run("kept", MALLOC_MMAP_THRESHOLD_="33554432")  # whoever sets glibc is heard
    assert pages >= 8 * SIZE / page * 0.9
    pages, given_back = _run("kept")
    assert pages < SIZE / page / 10
    assert given_back > 0.9 * SIZE
