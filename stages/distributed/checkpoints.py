"""Checkpoints that neither a kill nor a bad disk can break, and that fit any sharding.

    checkpoints/checkpoint-10/sums.json      the sha256 of all other files
    checkpoints/incomplete/checkpoint-20/    being written, or cut off

They are written aside, flushed, and renamed when complete; the newest two are kept. One whose files
no longer match their hashes is removed with a warning, for the one before it.

`Checkpoints` holds the state of a training loop of our own, `AtomicCheckpoints` that of a Trainer.
Weights and Adam's moments in them are whole, in torch's format by name, whatever sharded them (see
`stages/distributed/state.py`). So a run resumes on another number of processes, or with another
sharding.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from stages.distributed.compat import StageTrainer, full_shape
from stages.distributed.ranks import limit_waits
from stages.distributed.state import (
    Moments,
    gather_moments,
    gather_weights,
    is_main_process,
    named_shards,
    scatter_moments,
    scatter_weights,
)

ASIDE = "incomplete"
PREFIX = "checkpoint-"
SUMS, STATE, IDENTITY = "sums.json", "state.pt", "identity.json"
UNREAD = ("training_args.bin", "README.md")  # what libraries write about this machine's folders
OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"
_BYTES_A_NUMBER = 12  # at least: a weight and its two moments
KEEP = 2  # so that there is one before the newest

log = logging.getLogger(__name__)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None; damaged and half-written ones are removed."""
    if not folder.is_dir():
        return None
    shutil.rmtree(folder / ASIDE, ignore_errors=True)
    damaged: list[str] = []
    for checkpoint in reversed(_complete(folder)):
        fault = _fault(checkpoint)
        if fault is None and _can_resume(checkpoint):
            _warn(damaged, f"resuming from {checkpoint.name}, the one before")
            return checkpoint
        if fault is not None:
            damaged.append(f"{checkpoint}: {fault}")
            shutil.rmtree(checkpoint, ignore_errors=True)  # another rank may be at it too
    _warn(damaged, "there is none before it, so training restarts")
    return None


class Checkpoints:
    """The checkpoints of a training loop. `identity` is what a resumed run must share with them.

    Every rank must call `save`, `latest` and `drop`; the main one writes and reads.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], accelerator: Accelerator) -> None:
        self.folder, self.accelerator = folder, accelerator
        self.identity = json.loads(json.dumps(identity))

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the state after so many steps."""
        if self.accelerator.is_main_process:
            self._write(f"{PREFIX}{step}", state)
        self.accelerator.wait_for_everyone()

    def latest(self) -> dict[str, Any] | None:
        """The newest complete state, or None, on other ranks than the main one without tensors.

        Raises ValueError where it is of another run.
        """
        state = None
        if self.accelerator.is_main_process:
            if any(self.folder.glob("iteration-*")):
                raise ValueError(
                    f"{self.folder} has checkpoints of version 0.1, which cannot be resumed; "
                    "remove it to restart"
                )
            path = last_checkpoint(self.folder)
            if path is not None:
                self._require_same(path)
                state = torch.load(path / STATE, weights_only=True)
        shared = [_without_tensors(state)]
        broadcast_object_list(shared)
        return state if self.accelerator.is_main_process else shared[0]

    def drop(self, step: int) -> None:
        """Remove the checkpoint after so many steps, if there is an earlier one to return to."""
        path = self.folder / f"{PREFIX}{step}"
        if self.accelerator.is_main_process and path in _complete(self.folder)[1:]:
            shutil.rmtree(path)

    def _write(self, name: str, state: Mapping[str, Any]) -> None:
        aside = self.folder / ASIDE / name
        shutil.rmtree(self.folder / ASIDE, ignore_errors=True)
        try:
            aside.mkdir(parents=True)
            with (aside / STATE).open("wb") as handle:
                torch.save(dict(state), handle)
            (aside / IDENTITY).write_text(json.dumps(self.identity, indent=2) + "\n", "utf-8")
            _finish(aside)
        except (OSError, RuntimeError) as error:  # a full disk must not leave its half behind
            shutil.rmtree(self.folder / ASIDE, ignore_errors=True)
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            # torch hides the disk's own words
            raise OSError(cause.errno, cause.strerror, str(self.folder)) from error

    def _require_same(self, path: Path) -> None:
        identity = json.loads((path / IDENTITY).read_text(encoding="utf-8"))
        for key, own in self.identity.items():
            if identity.get(key) != own:
                raise ValueError(
                    f"{path} was made with {key} {identity.get(key)}, this run has {own}; remove "
                    "the checkpoints to restart, or run with the same settings"
                )


class AtomicCheckpoints(StageTrainer):
    """A Trainer whose `output_dir` holds complete checkpoints only, the newest two.

    Trainer writes each file into the folder's final place, so a kill leaves a folder that looks
    like a checkpoint and is none. `keep_all_checkpoints` keeps the older ones too. The first rank
    writes and reads what is large.
    """

    keep_all_checkpoints = False

    def newest_checkpoint(self) -> str | None:
        """The checkpoint to resume from: the first rank looks, all ranks get its answer."""
        shared = [last_checkpoint(self._folder()) if self.is_world_process_zero() else None]
        newest: Path | None = broadcast_object_list(shared)[0]
        return None if newest is None else str(newest)

    @property
    def is_sharded(self) -> bool:
        """True where the model's parameters may not be whole in this process."""
        return self.is_deepspeed_enabled or self.is_fsdp_enabled

    @property
    def reader(self) -> nn.Module:
        """The model for all ranks to run together, on the same batches, without gradients."""
        reader = self.model_wrapped if self.is_deepspeed_enabled else self.model
        assert reader is not None
        return reader

    def weights_in(self, checkpoint: Path) -> Mapping[str, Tensor]:
        """The whole weights of a checkpoint, at least all that are trained, by name."""
        raise NotImplementedError

    def trained_weights(self) -> dict[str, Tensor]:
        """All trained parameters, whole, on the first rank; every rank calls."""
        return gather_weights(self._trained())

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model whole, whatever shards it."""
        weights = self.trained_weights() if self.is_sharded else None
        if self.args.should_save:
            self.write_model(Path(output_dir or self._folder()), weights)

    def restore(self, checkpoint: Path | None) -> None:
        """Fill in what a checkpoint holds, which is whole, once everything is sharded."""
        limit_waits()
        if self.args.process_index > 0:  # else all ranks would drop out the same parts
            torch.manual_seed(self.args.seed + self.args.process_index)
        if checkpoint is None:
            return
        weights: Mapping[str, Tensor] = {}
        moments: Moments = {}
        if is_main_process():
            weights = self.weights_in(checkpoint)
            moments = torch.load(checkpoint / OPTIMIZER, weights_only=True, mmap=True)
        scatter_weights(self._trained(), weights)
        scatter_moments(self._trained(), self.optimizer, moments)
        self._restore_rates(torch.load(checkpoint / SCHEDULER, weights_only=True))
        self.load_scaler(checkpoint)

    def _restore_rates(self, saved: dict[str, Any]) -> None:
        """All parameter groups have one learning rate; ZeRO leaves out groups that are empty."""
        scheduler = self.lr_scheduler
        assert scheduler is not None
        assert self.optimizer is not None
        rates = saved["_last_lr"][:1] * len(self.optimizer.param_groups)
        ours = {"base_lrs": scheduler.base_lrs, "_last_lr": rates, "lr_lambdas": []}
        scheduler.load_state_dict({**saved, **ours})
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def write_optimizer(self, folder: Path) -> None:
        """Write the state of optimizer and scheduler, whole."""
        moments = gather_moments(self._trained(), self.optimizer)
        if self.args.should_save:
            assert self.lr_scheduler is not None
            torch.save(moments, folder / OPTIMIZER)
            torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER)

    def checkpoint_folder(self) -> Path:
        """Return the folder of what is not complete."""
        return self._folder() / ASIDE

    def write_checkpoint(self, write: Callable[[], None]) -> None:
        """Write a checkpoint aside, flush it, and rename it."""
        folder = self._folder()
        if self.args.should_save:
            shutil.rmtree(folder / ASIDE, ignore_errors=True)
            self._check_space()
        self.accelerator.wait_for_everyone()
        write()
        self.accelerator.wait_for_everyone()
        if not self.args.should_save:
            return
        aside = folder / ASIDE / f"{PREFIX}{self.state.global_step}"
        for unread in UNREAD:
            (aside / unread).unlink(missing_ok=True)
        _finish(aside, keep=None if self.keep_all_checkpoints else KEEP)

    def _check_space(self) -> None:
        """OSError where there is no room, before anything is gathered or written."""
        numbers = sum(full_shape(parameter).numel() for parameter in self._trained().values())
        folder = self._folder()
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < _BYTES_A_NUMBER * numbers:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _trained(self) -> dict[str, nn.Parameter]:
        assert self.model is not None
        return {name: p for name, p in named_shards(self.model).items() if p.requires_grad}

    def _folder(self) -> Path:
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)


def _finish(aside: Path, keep: int | None = KEEP) -> None:
    """Hash, flush and rename a checkpoint that is written, and remove all but the newest."""
    folder = aside.parent.parent
    files = sorted(path for path in aside.rglob("*") if path.is_file())
    sums = {str(path.relative_to(aside)): _sha256(path) for path in files}
    (aside / SUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
    for path in (*files, aside / SUMS, aside):
        _flush(path)
    shutil.rmtree(folder / aside.name, ignore_errors=True)
    aside.rename(folder / aside.name)
    _flush(folder)
    shutil.rmtree(folder / ASIDE)
    for old in _complete(folder)[:-keep] if keep is not None else ():
        shutil.rmtree(old)


def _complete(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest last."""
    return sorted(folder.glob(PREFIX + "*"), key=lambda path: int(path.name.removeprefix(PREFIX)))


def _fault(checkpoint: Path) -> str | None:
    """A sentence about a damaged checkpoint, or None. Files that were dropped are no fault."""
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
    """Return true if all files that were written are still there."""
    sums = json.loads((checkpoint / SUMS).read_text(encoding="utf-8"))
    return all((checkpoint / name).is_file() for name in sums)


def _warn(damaged: list[str], consequence: str) -> None:
    for fault in damaged:
        log.warning("%s; %s", fault, consequence)


def _without_tensors(state: Any) -> Any:
    """The same without the tensors in its mappings."""
    if not isinstance(state, Mapping):
        return state
    return {k: _without_tensors(v) for k, v in state.items() if not isinstance(v, Tensor)}


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
