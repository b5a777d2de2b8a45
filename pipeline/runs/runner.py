"""Carries a run through its stages: skips what is up to date, goes on with what was interrupted."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import yaml

from pipeline.config.experiment import ExperimentConfig, ImportedRankings
from pipeline.config.labeling import HumanAnnotators
from pipeline.evaluation.request import check_files
from pipeline.runs.display import Display, display, duration
from pipeline.runs.manifest import Manifest
from pipeline.runs.run import Run, Stage, Standing, is_gone, open_run
from pipeline.steps.plan import behind, plan
from stages.progress import Report, announce

SAID = {"changed": "restarts", "interrupted": "goes on where it was interrupted", "new": ""}


class Ranks(Protocol):
    """The processes that train a stage, where there are several; see `pipeline/launch`."""

    def train(self, run: Path, stage: str, report: Report) -> None:
        """Run a stage on all ranks; raise RankFailed, or ValueError for bad input."""

    def manifest(self) -> Mapping[str, Any]:
        """Return what an artefact's manifest records of them."""


def conduct(
    config: ExperimentConfig,
    folder: Path,
    *,
    until: str | None = None,
    only: str | None = None,
    ranks: Ranks | None = None,
) -> Path:
    """Run all stages, those up to `until`, or `only` one; return its folder.

    Before `only` one, earlier stages that are missing are done too, if they neither train nor wait
    for people. With `ranks` the stages that train are done by all of them. Raise ValueError for
    a stage that this experiment does not have or whose inputs are not ready.
    """
    stages = plan(config, folder)
    wanted = _up_to(stages, until or only)
    if only is not None:
        wanted = behind(stages, wanted[-1], folder)
    _require_given(wanted, folder)
    if any(stage.name == "evaluate" for stage in wanted):
        check_files(config.evaluation)
    with open_run(folder) as run, display([stage.name for stage in wanted]) as shown:
        _write_config(config, folder)
        checked = False
        for stage in wanted:
            standing = run.standing(stage)
            if only not in (None, stage.name):
                require_done(run, stage, standing, config)
            if stage.name != "data" and not checked and standing.state != "finished":
                _check_lengths(config, folder, wanted[wanted.index(stage) :])
                checked = True
            _advance(run, stage, standing, shown, ranks)
    return folder / wanted[-1].name


def _require_given(stages: Sequence[Stage], folder: Path) -> None:
    """Before hours of training: is everything there that no stage makes? Finished ones have it."""
    for stage in stages:
        finished = (folder / stage.name / "manifest.json").is_file()
        for name, place in stage.inputs.items():
            given = isinstance(place, Path) and not place.is_relative_to(folder)
            if given and is_gone(place) and not finished:
                raise ValueError(f"{place}: no such file; stage {stage.name} reads it as {name}")


def _check_lengths(config: ExperimentConfig, folder: Path, stages: Sequence[Stage]) -> None:
    from pipeline.steps.length_check import check_lengths

    check_lengths(config, folder / "data", {stage.name for stage in stages})


def _up_to(stages: Sequence[Stage], last: str | None) -> list[Stage]:
    names = [stage.name for stage in stages]
    if last is None:
        return list(stages)
    if last not in names:
        raise ValueError(
            f"stage '{last}' is not part of this experiment; expected one of {', '.join(names)}"
        )
    return list(stages[: names.index(last) + 1])


def require_done(run: Run, stage: Stage, standing: Standing, config: ExperimentConfig) -> None:
    """Raise ValueError for an earlier stage that the verb of a later one must not do."""
    is_label = stage.name.startswith("label")
    by_people = is_label and isinstance(config.labeling, HumanAnnotators)
    is_copied = (is_label and isinstance(config.labeling, ImportedRankings)) or stage.name == "data"
    is_missing = standing.state in ("new", "interrupted")
    if standing.state == "finished" or is_copied:
        return
    if is_missing and not stage.trains and not by_people:
        return
    state = f"has to run again ({standing.why})" if standing.why else "is not finished"
    command = f"rlhf {stage.name}" if by_people else f"rlhf run --until {stage.name}"
    raise ValueError(f"{run.folder / stage.name} {state}; expected it done first, by {command}")


def _advance(
    run: Run, stage: Stage, standing: Standing, shown: Display, ranks: Ranks | None
) -> None:
    if standing.state == "finished":
        shown.skip(stage.name, "up to date")
        return
    told = [stage.about, SAID[standing.state], standing.why]
    shown.begin(stage.name, ", ".join(text for text in told if text))
    if stage.trains:
        announce(shown.step, "loading libraries and models")
    todo = stage
    if ranks is not None and stage.trains:
        train = ranks.train
        todo = replace(
            stage,
            work=lambda folder, report: train(run.folder, folder.name, report),
            launched=ranks.manifest(),
        )
    with contextlib.redirect_stdout(sys.stderr):
        manifest = run.execute(todo, standing, shown.step)
    shown.finish(_cost(manifest))


def _cost(manifest: Manifest) -> str:
    memory = f"{manifest.peak_rss_bytes / 2**30:.1f} GiB of memory"
    return f"{duration(manifest.cpu_s)} of CPU time, {memory}"


def _write_config(config: ExperimentConfig, folder: Path) -> None:
    path = folder / "config.yaml"
    aside = path.with_name(path.name + ".part")
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
