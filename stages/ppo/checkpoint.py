"""Checkpoints that are whole or not there: written aside, flushed to the disk, renamed.

    checkpoints/iteration-000010/state.pt        weights, optimiser, average, controller, counters
    checkpoints/iteration-000010/checkpoint.json {"iteration", "sha256", "identity"}

A folder that ends in .part was cut off and is removed; one whose bytes do not match its hash is
passed over for the one before it. The last two are kept.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

STATE, NOTE = "state.pt", "checkpoint.json"
_KEPT = 2


class Checkpoints:
    """The checkpoints of one run. `identity` is what a continued run must share with it."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity = json.loads(json.dumps(identity))

    def save(self, iteration: int, state: Mapping[str, Any]) -> None:
        """Write the state after `iteration` iterations; all but the last two are removed."""
        final = self.folder / f"iteration-{iteration:06d}"
        aside = final.with_name(final.name + ".part")
        try:
            aside.mkdir(parents=True)
            torch.save(dict(state), aside / STATE)
            note = {
                "iteration": iteration,
                "sha256": _sha256(aside / STATE),
                "identity": self.identity,
            }
            (aside / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
            for path in (aside / STATE, aside / NOTE, aside):
                _flush(path)
        except OSError:  # a full disk must not leave its half behind
            shutil.rmtree(aside, ignore_errors=True)
            raise
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        _flush(self.folder)
        for old in self._complete()[:-_KEPT]:
            shutil.rmtree(old)

    def latest(self) -> dict[str, Any] | None:
        """The newest state that is whole, or None. Raises ValueError where it is another run's."""
        for path in reversed(self._complete()):
            try:
                note = json.loads((path / NOTE).read_text(encoding="utf-8"))
                whole = note["sha256"] == _sha256(path / STATE)
            except (OSError, ValueError, KeyError):
                continue
            if not whole:
                continue
            self._check_identity(path, note["identity"])
            state: dict[str, Any] = torch.load(path / STATE, weights_only=True)
            return state
        return None

    def remove_cut_off(self) -> None:
        """Remove what an earlier run was writing when it died."""
        for path in self.folder.glob("*.part"):
            shutil.rmtree(path)

    def _complete(self) -> list[Path]:
        found = self.folder.glob("iteration-*")
        return sorted(path for path in found if path.suffix != ".part")

    def _check_identity(self, path: Path, found: Mapping[str, Any]) -> None:
        for key, mine in self.identity.items():
            if found.get(key) != mine:
                raise ValueError(
                    f"{path} was made with {key} {found.get(key)}, this run has {mine}; remove the "
                    "checkpoints to start anew, or run with the same settings"
                )


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Wait until the file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
