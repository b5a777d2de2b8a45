"""What runs of one process said, beside which those of several ranks are laid."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

Told = list[dict[str, float]]  # what every step reported


@cache
def _kept(name: str) -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix=f"{name}-")


def folder_of(name: str) -> Path:
    """One folder by that name for all tests of this process; gone when it ends."""
    return Path(_kept(name).name)


def curve(told: Told, name: str) -> Tensor:
    """What the steps that have `name` say of it, in float64."""
    return torch.tensor([row[name] for row in told if name in row], dtype=torch.float64)
