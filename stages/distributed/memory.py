"""The memory that this process may still take."""

import ctypes
import logging
import os
import resource
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from reward_models.compat import FakeTensorMode, TorchDispatchMode, storage_key, storages

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h's names for mallopt


def keep_freed_memory() -> None:
    """From now on this process keeps it, unless the environment has settings of glibc's malloc.

    Elsewhere than on glibc nothing happens.
    """
    is_configured = any(
        name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ
    )
    mallopt = _glibc("mallopt")
    if mallopt is not None and not is_configured:
        mallopt(_MMAP_MAX, 0)  # no block of its own for a large tensor
        mallopt(_TRIM_THRESHOLD, -1)  # never give back the heap's end


def give_back_freed_memory() -> None:
    """Give back what is free now, so that the kernel counts it. Elsewhere nothing happens."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # no such thing as this process's own library
        return None


PROC, CGROUPS = Path("/proc/self"), Path("/sys/fs/cgroup")
USED = 0.8  # of what is free; the rest is for what allocators waste and libraries take


def usable(free: int, to_come: int) -> int:
    """Return the bytes of `free` that passes may take where so many are `to_come` beside them."""
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
    """Yield what every memory limit around this process leaves: of cgroups, version 2 or 1."""
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
    size: int = psutil.Process().memory_info().vms
    return size


_log = logging.getLogger("torch._subclasses.fake_tensor")


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes at the peak of work on so many rows: `fixed`, and `each` for every row."""

    fixed: int
    each: int

    def bytes(self, rows: int) -> int:
        """Return the bytes that so many rows take."""
        return self.fixed + rows * self.each

    def rows(self, room: int) -> int:
        """Return the number of rows that fit into `room` bytes."""
        return max(0, room - self.fixed) // self.each


def cost_of(work_on: Callable[[int], Callable[[], None]], rows: int = 1) -> Cost:
    """Return the cost of the work that `work_on` returns for a number of rows (of `rows` each)."""
    few, many = 4 * rows, 8 * rows  # of one row, the peak may lie elsewhere
    low, high = peak_bytes(work_on(few)), peak_bytes(work_on(many))
    each = max(1, (high - low) // (many - few))
    return Cost(max(0, low - few * each), each)


def peak_bytes(work: Callable[[], None]) -> int:
    """The most that the tensors which `work` makes hold at once.

    Raises what `work` does where it asks for numbers, which fake tensors do not have.
    """
    live = _Live()
    _log.disabled = True  # it prints the traceback of what is raised, and handled, here
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), live:
            work()
    finally:
        _log.disabled = False
    return live.peak


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._live = 0
        self._known: set[int] = set()  # of what was there before, and of what was made since

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        for storage in storages((args, kwargs)):
            if (key := storage_key(storage)) not in self._known:
                self._known.add(key)
                weakref.finalize(storage, self._known.discard, key)  # the key will be another's
        output = func(*args, **kwargs)
        for storage in storages(output):
            key = storage_key(storage)
            if key not in self._known:
                self._known.add(key)
                self._live += storage.nbytes()
                self.peak = max(self.peak, self._live)
                weakref.finalize(storage, self._free, key, storage.nbytes())
        return output

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size
