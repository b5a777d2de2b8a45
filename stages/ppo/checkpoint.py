"""Checkpoints that are whole or not there: written aside, flushed to the disk, renamed.

    checkpoints/iteration-000010/state.pt        weights, optimiser, average, controller, counters
    checkpoints/iteration-000010/checkpoint.json {"iteration", "sha256", "identity"}

A folder that ends in .part was cut off and is removed; one whose bytes do not match its hash is
passed over for the one before it. The last two are kept.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

STATE, NOTE = "state.pt", "checkpoint.json"
_KEPT = 2

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run. `identity` is what a continued run must share with it."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity = json.loads(json.dumps(identity))

    def save(
        self, iteration: int, state: Mapping[str, Any], accelerator: Accelerator | None = None
    ) -> None:
        """Write the state after `iteration` iterations; all but the last two are removed.

        With an accelerator, the main rank writes and all wait for it.
        """
        if accelerator is None or accelerator.is_main_process:
            self._write(iteration, state)
        if accelerator is not None:
            accelerator.wait_for_everyone()

    def _write(self, iteration: int, state: Mapping[str, Any]) -> None:
        final = self._folder_of(iteration)
        aside = final.with_name(final.name + ".part")
        try:
            aside.mkdir(parents=True)
            with (aside / STATE).open("wb") as handle:
                torch.save(dict(state), handle)
            note = {
                "iteration": iteration,
                "sha256": _sha256(aside / STATE),
                "identity": self.identity,
            }
            (aside / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
            for path in (aside / STATE, aside / NOTE, aside):
                _flush(path)
        except (OSError, RuntimeError) as error:  # a full disk must not leave its half behind
            shutil.rmtree(aside, ignore_errors=True)
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            # torch hides the disk's own words
            raise OSError(cause.errno, cause.strerror, str(self.folder)) from error
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        _flush(self.folder)
        for old in self._complete()[:-_KEPT]:
            shutil.rmtree(old)

    def latest(self, accelerator: Accelerator | None = None) -> dict[str, Any] | None:
        """The newest complete state, or None. Raises ValueError where it is another run's.

        With an accelerator, the main rank reads it, and the others get it without its tensors.
        """
        if accelerator is None:
            return self._newest()
        state = None
        if accelerator.is_main_process:
            self.remove_cut_off()
            state = self._newest()
        shared = [_without_tensors(state)]
        broadcast_object_list(shared)
        return state if accelerator.is_main_process else shared[0]

    def _newest(self) -> dict[str, Any] | None:
        damaged: list[Path] = []
        for path in reversed(self._complete()):
            try:
                note = json.loads((path / NOTE).read_text(encoding="utf-8"))
                whole = note["sha256"] == _sha256(path / STATE)
            except (OSError, ValueError, KeyError):
                whole = False
            if not whole:
                damaged.append(path)
                continue
            _tell(damaged, f"going on from {path.name}, the one before")
            self._check_identity(path, note["identity"])
            state: dict[str, Any] = torch.load(path / STATE, weights_only=True)
            return state
        _tell(damaged, "there is none before it, so training begins anew")
        return None

    def drop(self, iteration: int, accelerator: Accelerator) -> None:
        """Remove the checkpoint after this iteration, if there is an earlier one to return to."""
        complete = self._complete()
        is_newest = complete[-1:] == [self._folder_of(iteration)]
        if accelerator.is_main_process and is_newest and len(complete) > 1:
            shutil.rmtree(complete[-1])

    def remove_cut_off(self) -> None:
        """Remove what an earlier run was writing when it died."""
        for path in self.folder.glob("*.part"):
            shutil.rmtree(path)

    def _folder_of(self, iteration: int) -> Path:
        return self.folder / f"iteration-{iteration:06d}"

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


def _without_tensors(state: Any) -> Any:
    """The same without the tensors in its mappings."""
    if not isinstance(state, Mapping):
        return state
    return {k: _without_tensors(v) for k, v in state.items() if not isinstance(v, Tensor)}


def _tell(damaged: list[Path], consequence: str) -> None:
    for path in damaged:
        log.warning("%s is damaged (its hash is not the one written); %s", path, consequence)


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
