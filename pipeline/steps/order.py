"""The stages of an experiment, first to last, and the command that runs them.

    data → sft → sample → label → reward → select → ppo → ppo-ptx → evaluate → report

With `sft: null` a run starts from another's policy; with `reward: null` it has another's reward
model, and nothing is sampled and ranked. `sft_choice: loss` leaves `select` out. With `ppo_init`
PPO starts from, and is held to, a fine-tuning of its own, as in appendix C.3.

`rounds` above 1 repeat stages two and three (section 3.5). A later round samples from the policy
that the round before it trained, beside the policies that the config names, has the outputs ranked,
trains the reward model again on the rankings of all rounds so far, and trains new policies against
it. They start from the same model as the first round's, so that the KL means the same in all.
"""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from pipeline.config.experiment import ExperimentConfig, ImportedRankings
from pipeline.runs.display import Display, display, duration
from pipeline.runs.manifest import checked_source
from pipeline.runs.run import Run, Status, is_gone, open_run
from pipeline.runs.stage import Ranks, Stage
from pipeline.steps.baselines import baseline_stages
from pipeline.steps.data import Data
from pipeline.steps.evaluate import Evaluate
from pipeline.steps.label import Label, tasks_file
from pipeline.steps.ppo import Ppo
from pipeline.steps.report import ReportPage
from pipeline.steps.reward import Reward
from pipeline.steps.sample import Sample
from pipeline.steps.select import Select
from pipeline.steps.sft import Sft
from reward_models.atomic_files import written_aside
from stages.progress import announce

VERBS = {"changed": "restarts", "interrupted": "resumes", "new": ""}


def experiment_stages(config: ExperimentConfig, folder: Path) -> list[Stage]:
    """Return the stages of this experiment in the run's folder, first to last."""
    data, sft = Data(config, folder), Sft(config, folder)
    sample, label = Sample(config, folder), Label(config, folder)
    stages: list[Stage]
    if tasks_file(config.labeling) is not None:  # their mistakes show before anything is trained
        stages = [data, label, sft]
    elif isinstance(config.labeling, ImportedRankings):  # likewise
        stages = [data, label, sft, sample]
    else:
        stages = [data, sft, sample, label]
    if config.reward is None:
        stages = [data, sft]
    else:
        stages.append(Reward(config, folder))
    if config.sft is None:
        stages.remove(sft)
    elif config.sft_choice == "reward":
        stages.append(Select(config, folder))
    if config.ppo_init is not None:
        stages.append(Sft(config, folder, for_ppo=True))
    stages += _ppo(config, folder, 1)
    for number in range(2, config.rounds + 1):
        stages += [Sample(config, folder, number), Label(config, folder, number)]
        stages += [Reward(config, folder, number), *_ppo(config, folder, number)]
    stages += [*baseline_stages(config, folder), Evaluate(config, folder)]
    trained = [stage.name for stage in stages if stage.work == "training"]
    return [*stages, ReportPage(config, folder, trained=trained)]


def _ppo(config: ExperimentConfig, folder: Path, number: int) -> list[Stage]:
    stages: list[Stage] = []
    if config.ppo is not None:
        stages.append(Ppo(config, folder, number, kind="ppo"))
    if config.ppo_ptx is not None:
        stages.append(Ppo(config, folder, number, kind="ppo-ptx"))
    return stages


def stages_until(config: ExperimentConfig, folder: Path, name: str) -> list[Stage]:
    """Return the stages up to the one of this name; ValueError where there is none."""
    stages = experiment_stages(config, folder)
    names = [stage.name for stage in stages]
    if name not in names:
        raise ValueError(
            f"stage '{name}' is not part of this experiment; expected one of {', '.join(names)}"
        )
    return stages[: names.index(name) + 1]


def run_experiment(
    config: ExperimentConfig,
    folder: Path,
    *,
    until: str | None = None,
    only: str | None = None,
    ranks: Ranks | None = None,
) -> Path:
    """Run all stages, those up to `until`, or `only` one; return the last one's folder.

    Stages that are up to date are skipped. Before `only` one, earlier stages that are missing are
    run too, if they neither train nor wait for people. With `ranks` the stages that train run on
    all of them. Data sets are checked after they are written and before any later stage starts.
    Raise ValueError for a stage that this experiment does not have or whose inputs are not ready.
    """
    for name in {config.model, config.reward_base, config.policy} - {"sft", "base", None}:
        checked_source(str(name))
    last = until or only
    stages = stages_until(config, folder, last) if last else experiment_stages(config, folder)
    if only is not None:
        stages = _ancestors(stages, folder)
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


def _ancestors(stages: Sequence[Stage], folder: Path) -> list[Stage]:
    """Return the stages whose artefacts the last one is made from, directly or not, and itself."""
    needed = {stages[-1].name}
    for stage in reversed(stages):
        if stage.name in needed:
            inside = (path for path in stage.inputs().values() if isinstance(path, Path))
            needed |= {p.relative_to(folder).parts[0] for p in inside if p.is_relative_to(folder)}
    return [stage for stage in stages if stage.name in needed]


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
