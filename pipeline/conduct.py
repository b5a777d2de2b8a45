"""Carries a run through its stages: skips what is up to date, goes on with what was interrupted."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from pipeline.config import ExperimentConfig
from pipeline.crew import Crew
from pipeline.lineage import Manifest
from pipeline.plan import behind, plan
from pipeline.progress import Display, display, duration
from pipeline.run import Run, Stage, is_gone, open_run

SAID = {"changed": "begins anew", "interrupted": "goes on where it was interrupted", "new": ""}


def conduct(
    config: ExperimentConfig,
    folder: Path,
    *,
    until: str | None = None,
    only: str | None = None,
    crew: Crew | None = None,
) -> Path:
    """Run all stages, those up to `until`, or `only` one whose inputs are there; return its folder.

    With a `crew` the stages that train are done by all its ranks. Raise ValueError for a stage that
    this experiment does not have or whose inputs are not ready.
    """
    stages = plan(config, folder)
    wanted = _up_to(stages, until or only)
    if only is not None:
        wanted = behind(stages, wanted[-1], folder)
    _require_given(wanted, folder)
    with open_run(folder) as run, display([stage.name for stage in wanted]) as shown:
        _write_config(config, folder)
        checked = False
        for stage in wanted:
            is_free = only in (None, stage.name) or stage.name == "data"
            works = is_free and stage.name != "data" and not checked
            if works and run.standing(stage).state != "finished":
                _check_lengths(config, folder, wanted if only is None else [stage])
                checked = True
            _advance(run, stage, shown, crew, may_work=is_free)
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
    from pipeline.length_check import check_lengths

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


def _advance(run: Run, stage: Stage, shown: Display, crew: Crew | None, *, may_work: bool) -> None:
    standing = run.standing(stage)
    if standing.state == "finished":
        shown.skip(stage.name, "up to date")
        return
    if not may_work:
        state = f"has to run again ({standing.why})" if standing.why else "is not finished"
        raise ValueError(
            f"{run.folder / stage.name} {state}; expected it done first, "
            f"by rlhf run --until {stage.name}"
        )
    told = [stage.about, SAID[standing.state], standing.why]
    shown.begin(stage.name, ", ".join(text for text in told if text))
    todo = stage
    if crew is not None and stage.trains:
        todo = crew.over_processes(stage, run.folder)
    with contextlib.redirect_stdout(sys.stderr):
        manifest = run.execute(todo, standing, shown.step)
    shown.finish(_cost(manifest))


def _cost(manifest: Manifest) -> str:
    cpu = f"{duration(manifest.cpu_s)} of CPU"
    return f"{cpu}, {manifest.peak_rss_bytes / 2**30:.1f} GiB"


def _write_config(config: ExperimentConfig, folder: Path) -> None:
    path = folder / "config.yaml"
    aside = path.with_name(path.name + ".part")
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
