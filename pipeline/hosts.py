"""The hosts that a run is spread over: a text file as DeepSpeed's hostfile, one host a line.

node-1 slots=4      # the first one keeps the run's folder, the manifest and the display
node-2 slots=4
"""

import re
from dataclasses import dataclass
from pathlib import Path

from reward_models.row_files import read_text

LINE = re.compile(r"(?P<name>[\w.:-]+)(?:\s+slots\s*=\s*(?P<slots>\d+))?")


@dataclass(frozen=True, slots=True)
class Host:
    """A machine by the name that the others reach it under, and how many ranks it takes."""

    name: str
    slots: int


def read_hosts(path: Path) -> tuple[Host, ...]:
    """The hosts in order; ValueError, naming the line, where one is not understood."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a host a line, such as: node-1 slots=4")
    found: list[Host] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        said = line.partition("#")[0].strip()
        if not said:
            continue
        match = LINE.fullmatch(said)
        slots = 0 if match is None else int(match["slots"] or 1)
        if match is None or slots < 1:
            raise ValueError(f"{path}:{number}: '{said}'; expected NAME slots=N, N at least 1")
        if match["name"] in (host.name for host in found):
            raise ValueError(f"{path}:{number}: host {match['name']} is there twice; expected once")
        found.append(Host(match["name"], slots))
    if not found:
        raise ValueError(f"{path}: no hosts; expected a host a line, such as: node-1 slots=4")
    return tuple(found)
