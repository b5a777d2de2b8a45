"""The results of one process, with which those of several ranks are compared."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

Steps = list[dict[str, float]]  # what every step reported


@cache
def _cached(name: str) -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix=f"{name}-")


def folder_of(name: str) -> Path:
    """One folder by that name for all tests of this process; gone when it ends."""
    return Path(_cached(name).name)


def curve(steps: Steps, name: str) -> Tensor:
    """The values of `name` in the steps that have it, in float64."""
    return torch.tensor([row[name] for row in steps if name in row], dtype=torch.float64)
