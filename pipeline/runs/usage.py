"""The seconds and bytes that a stage used."""

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Usage:
    """Seconds and bytes between the start of a meter and its reading."""

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int


class Meter:
    """A meter that starts when it is made."""

    def __init__(self) -> None:
        self.wall = time.monotonic()
        self.cpu = _cpu_s()
        _reset_peak()

    def read(self) -> Usage:
        """Return the usage since the meter was made."""
        wall, cpu = time.monotonic() - self.wall, _cpu_s() - self.cpu
        return Usage(round(wall, 3), round(cpu, 3), _peak_rss_bytes())


def _cpu_s() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def _reset_peak() -> None:
    """Reset the peak on Linux; elsewhere it stays the peak of the whole process."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _peak_rss_bytes() -> int:
    """Return the peak of this process since the reset, or of its largest child that has ended."""
    unit = 1 if sys.platform == "darwin" else 1024
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return max(int(line.split()[1]) * 1024, child)
    return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, child)
