"""Runs stages in order: skips what is up to date, resumes what was interrupted."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel

from pipeline.runs.display import Display, display, duration
from pipeline.runs.run import Run, Status, is_gone, open_run
from pipeline.runs.stage import Ranks, Stage
from reward_models.atomic_files import written_aside
from stages.progress import announce

VERBS = {"changed": "restarts", "interrupted": "resumes", "new": ""}


def run_stages(
    stages: Sequence[Stage],
    config: BaseModel,
    folder: Path,
    *,
    only: str | None = None,
    ranks: Ranks | None = None,
) -> Path:
    """Run all of `stages` that are not up to date; return the last one's folder.

    With `only`, the name of the last one, those before it are run only where that takes moments.
    Data sets are checked after they are written and before any later stage starts.
    """
    _require_inputs(stages, folder)
    for stage in stages:
        stage.check_settings()
    with open_run(folder) as run, display([stage.name for stage in stages]) as progress:
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        with written_aside(folder / "config.yaml") as aside:
            aside.write_text(text, encoding="utf-8")
        checked = False
        for number, stage in enumerate(stages):
            status = run.status(stage)
            if only not in (None, stage.name):
                require_done(run, stage, status)
            if stage.name != "data" and not checked and status.state != "finished":
                for later in stages[number:]:
                    later.check_data()
                checked = True
            _advance(run, stage, status, progress, ranks)
    return folder / stages[-1].name


def _require_inputs(stages: Sequence[Stage], folder: Path) -> None:
    """Raise ValueError for a missing input from outside the run that no finished stage has read."""
    for stage in stages:
        finished = (folder / stage.name / "manifest.json").is_file()
        for name, source in stage.inputs().items():
            outside = isinstance(source, Path) and not source.is_relative_to(folder)
            if outside and is_gone(source) and not finished:
                raise ValueError(f"{source}: no such file; stage {stage.name} reads it as {name}")


def require_done(run: Run, stage: Stage, status: Status) -> None:
    """Raise ValueError for an earlier stage that the verb of a later one must not run."""
    if status.state == "finished" or stage.work == "copying":
        return
    if status.state in ("new", "interrupted") and stage.work == "computing":
        return
    state = f"has to run again ({status.reason})" if status.reason else "is not finished"
    people = stage.work == "people"
    command = f"rlhf {stage.name}" if people else f"rlhf run --until {stage.name}"
    raise ValueError(f"{run.folder / stage.name} {state}; expected it done first, by {command}")


def _advance(
    run: Run, stage: Stage, status: Status, progress: Display, ranks: Ranks | None
) -> None:
    if status.state == "finished":
        progress.skip(stage.name, "up to date")
        return
    parts = [stage.about, VERBS[status.state], status.reason]
    progress.begin(stage.name, ", ".join(text for text in parts if text))
    trains = stage.work == "training"
    if trains:
        announce(progress.step, "loading libraries and models")
    with contextlib.redirect_stdout(sys.stderr):
        manifest = run.execute(stage, status, progress.step, ranks if trains else None)
    memory = f"{manifest.peak_rss_bytes / 2**30:.1f} GiB of memory"
    progress.finish(f"{duration(manifest.cpu_s)} of CPU time, {memory}")
