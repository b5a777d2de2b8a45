"""The metrics of runs of one process, with which those of several ranks are compared."""

import os
import signal
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from stages.progress import Report, Step

Rows = list[dict[str, float]]  # the metrics of every step


@cache
def _folder(name: str) -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix=f"{name}-")


def folder_of(name: str) -> Path:
    """One folder by that name for all tests of this process; gone when it ends."""
    return Path(_folder(name).name)


def recorder(rows: Rows, dies_at: int | None) -> Report:
    """Append the metrics of every step to `rows`; kill the process at step `dies_at`."""

    def report(step: Step) -> None:
        if step.done == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if step.metrics:
            rows.append({"step": step.done, **step.metrics})

    return report


def assert_same_curves(rows: Rows, expected: Rows, names: Sequence[str]) -> None:
    """The metrics, of all steps or of the last ones, are those expected."""
    expected = expected[-len(rows) :]
    for name in ("step", *names):
        torch.testing.assert_close(_curve(rows, name), _curve(expected, name), atol=1e-5, rtol=0)


def _curve(rows: Rows, name: str) -> Tensor:
    return torch.tensor([row[name] for row in rows if name in row], dtype=torch.float64)
