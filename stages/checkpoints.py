"""Checkpoints that neither a kill nor a bad disk can break.

They are written aside, flushed, and renamed when complete. `sums.json` in each has the sha256 of
its files: one that no longer matches is passed over for the one before it, and that is said.
"""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

from torch import nn
from transformers import Trainer

ASIDE = "incomplete"
PREFIX = "checkpoint-"
SUMS = "sums.json"
_KEPT = 2  # so that there is one before the newest

log = logging.getLogger(__name__)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole, or None; what is damaged or half-written is removed."""
    if not folder.is_dir():
        return None
    shutil.rmtree(folder / ASIDE, ignore_errors=True)
    damaged: list[str] = []
    for checkpoint in sorted(folder.glob(PREFIX + "*"), key=_step, reverse=True):
        fault = _fault(checkpoint)
        if fault is None and _can_resume(checkpoint):
            _tell(damaged, f"going on from {checkpoint.name}, the one before")
            return checkpoint
        if fault is not None:
            damaged.append(f"{checkpoint}: {fault}")
            shutil.rmtree(checkpoint, ignore_errors=True)  # another rank may be at it too
    _tell(damaged, "there is none before it, so training begins anew")
    return None


def _tell(damaged: list[str], consequence: str) -> None:
    for said in damaged:
        log.warning("%s; %s", said, consequence)


def _fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None. Files that were dropped are no fault."""
    try:
        sums: dict[str, str] = json.loads((checkpoint / SUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{SUMS} is missing or damaged"
    for name, sha256 in sums.items():
        path = checkpoint / name
        if path.is_file() and _sha256(path) != sha256:
            return f"{name} is damaged (its hash is not the one that was written)"
    return None


def _can_resume(checkpoint: Path) -> bool:
    """Whether all that was written is still there."""
    sums = json.loads((checkpoint / SUMS).read_text(encoding="utf-8"))
    return all((checkpoint / name).is_file() for name in sums)


class AtomicCheckpoints(Trainer):
    """A Trainer whose `output_dir` holds complete checkpoints only, the newest two.

    Trainer writes each file into the folder's final place, so a kill leaves a folder that looks
    like a checkpoint and is none. `keep_all_checkpoints` keeps the older ones too.
    """

    keep_all_checkpoints = False

    def _get_output_dir(self, trial: object) -> str:  # noqa: ARG002 - Trainer's signature
        return str(self._folder() / ASIDE)

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        folder = self._folder()
        if self.args.should_save:
            shutil.rmtree(folder / ASIDE, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if not self.args.should_save:
            return
        name = f"{PREFIX}{self.state.global_step}"
        _write_sums(folder / ASIDE / name)
        _flush(folder / ASIDE / name)
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / ASIDE / name).rename(folder / name)
        shutil.rmtree(folder / ASIDE)
        if not self.keep_all_checkpoints:
            for checkpoint in sorted(folder.glob(PREFIX + "*"), key=_step)[:-_KEPT]:
                shutil.rmtree(checkpoint)

    def _folder(self) -> Path:
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))


def _write_sums(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {str(path.relative_to(folder)): _sha256(path) for path in files}
    (folder / SUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
