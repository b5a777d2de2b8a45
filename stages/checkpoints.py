"""Checkpoints that a kill cannot break: written aside, flushed, and renamed when complete."""

import os
import shutil
from pathlib import Path

from torch import nn
from transformers import Trainer

ASIDE = "incomplete"
PREFIX = "checkpoint-"


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None. What was left half-written is removed."""
    if not folder.is_dir():
        return None
    shutil.rmtree(folder / ASIDE, ignore_errors=True)
    complete = sorted(folder.glob(PREFIX + "*"), key=_step)
    return complete[-1] if complete else None


class AtomicCheckpoints(Trainer):
    """A Trainer whose `output_dir` holds complete checkpoints only, the newest alone.

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
        _flush(folder / ASIDE / name)
        older = list(folder.glob(PREFIX + "*"))
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / ASIDE / name).rename(folder / name)
        shutil.rmtree(folder / ASIDE)
        if not self.keep_all_checkpoints:
            for checkpoint in older:
                if checkpoint.name != name:
                    shutil.rmtree(checkpoint)

    def _folder(self) -> Path:
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
