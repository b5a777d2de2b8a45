"""The stage between sampling and the reward model: rankings, from programs, people or a file.

All three leave `tasks.jsonl` and `rankings.jsonl`; simulated annotators and people write through
the same store.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from labeling_ui.store.store import Store
from pipeline.config.experiment import (
    ExperimentConfig,
    ImportedRankings,
    Labeling,
    SimulatedAnnotators,
)
from pipeline.config.labeling import HumanAnnotators
from pipeline.steps.data import DataFolder
from pipeline.steps.human_labels import STORE, ranked_by_people
from pipeline.steps.order import latest, named
from reward_models.atomic_files import write_jsonl
from reward_models.records import (
    Prompt,
    Ranking,
    RankingTask,
    read_rankings,
    read_records,
    read_tasks,
)
from stages.data.preferences import load_pairs
from stages.progress import Report, Step

AT_ONCE = 100  # rankings of one transaction


def tasks_file(labeling: Labeling) -> Path | None:
    """The file of tasks that the config names; None where the run samples outputs to be ranked."""
    match labeling:
        case ImportedRankings() | HumanAnnotators():
            return None if labeling.tasks is None else Path(labeling.tasks)
        case SimulatedAnnotators():
            return None


def collect(
    config: ExperimentConfig, run: Path, out: Path, report: Report, number: int = 1
) -> None:
    """Write a round's tasks and their rankings to `out`; PeopleNeeded while too few are ranked."""
    labeling = config.labeling
    if isinstance(labeling, ImportedRankings) and labeling.tasks is None:
        _write(*load_pairs(Path(labeling.rankings)), out)
        return
    tasks = read_tasks(tasks_file(labeling) or run / named("sample", number) / "tasks.jsonl")
    match labeling:
        case SimulatedAnnotators():
            prompts = DataFolder(run / "data").prompts("ranking")
            seed = named(str(config.seed), number)
            rankings = _simulated(labeling, tasks, prompts, seed, out, report)
        case HumanAnnotators():
            rankings = ranked_by_people(labeling, tasks, run, report)
        case ImportedRankings():
            rankings = read_rankings(Path(labeling.rankings), tasks)
    _write(tasks, rankings, out)


def _write(tasks: Sequence[RankingTask], rankings: Sequence[Ranking], out: Path) -> None:
    write_jsonl(out / "tasks.jsonl", (task.to_json() for task in tasks))
    write_jsonl(out / "rankings.jsonl", (ranking.to_json() for ranking in rankings))


def kinds(out: Path) -> set[str]:
    """The kinds of annotators behind a finished labeling stage."""
    return {ranking.kind for ranking in read_records(out / "rankings.jsonl", Ranking)}


def judge_agreement_of(run: Path) -> float | None:
    """How often the judge orders the pairs of a run's simulated rankings so; None of other ones."""
    from pipeline.quickstart.annotators import judge_agreement

    labelled = latest(run, "label")
    if not (labelled / "rankings.jsonl").is_file() or kinds(labelled) != {"simulated"}:
        return None
    tasks = read_records(labelled / "tasks.jsonl", RankingTask)
    worlds = _worlds(tasks, DataFolder(run / "data").prompts("ranking"))
    return judge_agreement(tasks, worlds, read_records(labelled / "rankings.jsonl", Ranking))


def _simulated(
    labeling: SimulatedAnnotators,
    tasks: Sequence[RankingTask],
    prompts: Sequence[Prompt],
    seed: str,
    out: Path,
    report: Report,
) -> list[Ranking]:
    """Let the pool rank everything, through the store that people's rankings go through."""
    from pipeline.quickstart.annotators import simulate

    by_task = _worlds(tasks, prompts)
    rankings = simulate(tasks, by_task, seed, labeling.taste, labeling.overlap)
    for leftover in out.glob(f"{STORE}*"):
        leftover.unlink()
    with closing(Store(out / STORE)) as store:
        store.add_tasks(tasks, overlap=max(Counter(ranking.task for ranking in rankings).values()))
        for begin in range(0, len(rankings), AT_ONCE):
            store.submit_all(rankings[begin : begin + AT_ONCE])
            report(Step(min(begin + AT_ONCE, len(rankings)), len(rankings)))
        # a program has no time of day, and two runs with one seed write one file
        return [replace(ranking, time=None) for ranking in store.rankings()]


def _worlds(
    tasks: Sequence[RankingTask], prompts: Sequence[Prompt]
) -> dict[str, Mapping[str, object]]:
    """What the judge reads, by task."""
    worlds = {(p.history, p.context, p.prompt): p.extra["world"] for p in prompts}
    return {task.id: worlds[task.history, task.context, task.prompt] for task in tasks}
