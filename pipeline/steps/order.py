"""The stages of an experiment, first to last, and the command that runs them.

    data → sft → sample → label → reward → select → ppo → ppo-ptx → evaluate → report

`sft_choice: loss` leaves `select` out. With `ppo_init` PPO starts from, and is held to, a
fine-tuning of its own, as in appendix C.3.

`rounds` above 1 repeat stages two and three (section 3.5). A later round samples from the policy
that the round before it trained, beside the policies that the config names, has the outputs ranked,
trains the reward model again on the rankings of all rounds so far, and trains new policies against
it. They start from the same model as the first round's, so that the KL means the same in all.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.config.experiment import ExperimentConfig, ImportedRankings
from pipeline.runs.manifest import checked_source
from pipeline.runs.runner import run_stages
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
    stages.append(Reward(config, folder))
    if config.sft_choice == "reward":
        stages.append(Select(config, folder))
    if config.ppo_init is not None:
        stages.append(Sft(config, folder, for_ppo=True))
    stages += _ppo(config, folder, 1)
    for number in range(2, config.rounds + 1):
        stages += [Sample(config, folder, number), Label(config, folder, number)]
        stages += [Reward(config, folder, number), *_ppo(config, folder, number)]
    stages += [*baseline_stages(config, folder), Evaluate(config, folder)]
    trained = [stage.name for stage in stages if stage.work == "training"]
    return [*stages, ReportPage(config, folder, trained)]


def _ppo(config: ExperimentConfig, folder: Path, number: int) -> list[Stage]:
    stages: list[Stage] = []
    if config.ppo is not None:
        stages.append(Ppo(config, folder, "ppo", number))
    if config.ppo_ptx is not None:
        stages.append(Ppo(config, folder, "ppo-ptx", number))
    return stages


def stage_named(config: ExperimentConfig, folder: Path, name: str) -> Stage:
    """Return one stage of the experiment; ValueError where it has none of this name."""
    stages = experiment_stages(config, folder)
    return stages[_index(stages, name)]


def run_experiment(
    config: ExperimentConfig,
    folder: Path,
    *,
    until: str | None = None,
    only: str | None = None,
    ranks: Ranks | None = None,
) -> Path:
    """Run all stages, those up to `until`, or `only` one; return the last one's folder.

    Before `only` one, earlier stages that are missing are run too, if they neither train nor wait
    for people. With `ranks` the stages that train run on all of them. Raise ValueError for a stage
    that this experiment does not have or whose inputs are not ready.
    """
    for name in {config.model, config.reward_base} - {"sft", "base"}:
        checked_source(name)
    stages = experiment_stages(config, folder)
    last = until or only
    if last is not None:
        stages = stages[: _index(stages, last) + 1]
    if only is not None:
        stages = _ancestors(stages, folder)
    return run_stages(stages, config, folder, only=only, ranks=ranks)


def _index(stages: Sequence[Stage], name: str) -> int:
    names = [stage.name for stage in stages]
    if name not in names:
        raise ValueError(
            f"stage '{name}' is not part of this experiment; expected one of {', '.join(names)}"
        )
    return names.index(name)


def _ancestors(stages: Sequence[Stage], folder: Path) -> list[Stage]:
    """Return the stages whose artefacts the last one is made from, directly or not, and itself."""
    needed = {stages[-1].name}
    for stage in reversed(stages):
        if stage.name in needed:
            inside = (path for path in stage.inputs().values() if isinstance(path, Path))
            needed |= {p.relative_to(folder).parts[0] for p in inside if p.is_relative_to(folder)}
    return [stage for stage in stages if stage.name in needed]
