"""What a stage costs: wall seconds, CPU seconds of this process and its children, peak memory."""

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
    """Starts when it is made; `read` gives what was used since."""

    def __init__(self) -> None:
        self.wall = time.monotonic()
        self.cpu = _cpu_s()
        _forget_peak()

    def read(self) -> Usage:
        """What was used since the meter was made."""
        wall, cpu = time.monotonic() - self.wall, _cpu_s() - self.cpu
        return Usage(round(wall, 3), round(cpu, 3), _peak_rss_bytes())


def _cpu_s() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def _forget_peak() -> None:
    """Let Linux count the peak anew; elsewhere it stays the peak of the whole process."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _peak_rss_bytes() -> int:
    """Of this process since it was forgotten, or of its largest child that has ended."""
    unit = 1 if sys.platform == "darwin" else 1024
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return max(int(line.split()[1]) * 1024, child)
    return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, child)
