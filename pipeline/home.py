"""Paths and names of the command line, where `~` is the home folder also if a shell left it."""

import re
from pathlib import Path

from stages.config_base import at_home


def path(text: str) -> Path:
    """A path, as in `--out=~/runs/first`."""
    return Path(text).expanduser()


def name(text: str) -> str:
    """Expand `~` in a path, alone or after a name, as in `--policy mine=~/runs/first`."""
    parts = re.split(r"([=:])(?=~)", text)
    return "".join(map(at_home, parts))
