"""What tensors on a CPU give back: kept by this process for the next ones, or by the kernel.

By itself, glibc gives every block above 32 MiB back at once, and the heap's end when that has
grown. The next pass asks for as much again, and the kernel fills it with zeros, page by page.
"""

import ctypes
import os
from typing import Any

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h's names for mallopt


def keep_freed_memory() -> None:
    """From now on this process keeps it, unless the environment has settings of glibc's malloc.

    Elsewhere than on glibc nothing happens.
    """
    told = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    mallopt = _glibc("mallopt")
    if mallopt is not None and not told:
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
