"""The stage between sampling and the reward model: rankings, from programs, people or a file.

All three leave `tasks.jsonl` and `rankings.jsonl`; simulated annotators and people write through
the same store.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from labeling_ui.store import Store
from pipeline.config import (
    ExperimentConfig,
    HumanAnnotators,
    ImportedRankings,
    SimulatedAnnotators,
)
from pipeline.datasets import DataFolder
from pipeline.failures import PeopleNeeded
from reward_models.records import Prompt, Ranking, RankingTask, read_records, write_jsonl
from stages.progress import Report, Step

STORE = "rankings.sqlite"
AT_ONCE = 100  # rankings of one transaction


def store_of(labeling: HumanAnnotators, run: Path) -> str:
    """Where people's rankings are: beside the stages, so that no stage's new start touches them."""
    return labeling.store if labeling.store is not None else str(run / STORE)


def collect(config: ExperimentConfig, run: Path, out: Path, report: Report) -> None:
    """Write the tasks and their rankings to `out`; PeopleNeeded while too few are ranked."""
    match config.labeling:
        case SimulatedAnnotators():
            tasks = read_records(run / "sample/tasks.jsonl", RankingTask)
            prompts = DataFolder(run / "data").prompts("ranking")
            rankings = _simulated(config.labeling, tasks, prompts, config.seed, out, report)
        case HumanAnnotators():
            tasks = read_records(run / "sample/tasks.jsonl", RankingTask)
            rankings = _by_people(config.labeling, tasks, run, report)
        case ImportedRankings():
            tasks = read_records(Path(config.labeling.tasks), RankingTask)
            rankings = _imported(Path(config.labeling.rankings), tasks)
    write_jsonl(out / "tasks.jsonl", (task.to_json() for task in tasks))
    write_jsonl(out / "rankings.jsonl", (ranking.to_json() for ranking in rankings))


def kinds(out: Path) -> set[str]:
    """The kinds of annotators behind a finished labeling stage."""
    return {ranking.kind for ranking in read_records(out / "rankings.jsonl", Ranking)}


def judge_agreement_of(run: Path) -> float | None:
    """How often the judge orders the pairs of a run's simulated rankings so; None of other ones."""
    from pipeline.quickstart.annotators import judge_agreement

    labelled = run / "label"
    if not (labelled / "rankings.jsonl").is_file() or kinds(labelled) != {"simulated"}:
        return None
    tasks = read_records(labelled / "tasks.jsonl", RankingTask)
    worlds = _worlds(tasks, DataFolder(run / "data").prompts("ranking"))
    return judge_agreement(tasks, worlds, read_records(labelled / "rankings.jsonl", Ranking))


def num_open(labeling: HumanAnnotators, tasks: Sequence[RankingTask], store: Store) -> int:
    """How many tasks still need an answer (a ranking or a skip) from somebody."""
    answers = Counter(ranking.task for ranking in store.rankings(skipped=True))
    return sum(answers[task.id] < labeling.per_task for task in tasks)


def answers_hash(labeling: HumanAnnotators, run: Path) -> str:
    """A hash of everything ranked so far: with more answers, the reward model is trained again."""
    where = store_of(labeling, run)
    if "://" not in where and not Path(where).exists():
        return "none yet"
    with closing(Store(where)) as store:
        said = [json.dumps(ranking.to_json(), sort_keys=True) for ranking in store.rankings()]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def _simulated(
    labeling: SimulatedAnnotators,
    tasks: Sequence[RankingTask],
    prompts: Sequence[Prompt],
    seed: int,
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
    worlds = {(prompt.prompt, prompt.context): prompt.extra["world"] for prompt in prompts}
    return {task.id: worlds[task.prompt, task.context] for task in tasks}


def _by_people(
    labeling: HumanAnnotators, tasks: Sequence[RankingTask], run: Path, report: Report
) -> list[Ranking]:
    ours = {task.id for task in tasks}
    allowed = int(len(tasks) * (1 - labeling.enough))
    with closing(Store(store_of(labeling, run))) as store:
        store.add_tasks(tasks, overlap=labeling.per_task)

        def is_enough() -> bool:
            left = num_open(labeling, tasks, store)
            report(Step(len(tasks) - left, len(tasks)))
            return left <= allowed

        if labeling.wait and not is_enough():
            from labeling_ui.app import serve

            serve(store, host=labeling.host, port=labeling.port, until=is_enough)
        if not is_enough():
            left = num_open(labeling, tasks, store)
            raise PeopleNeeded(f"{left} of {len(tasks)} tasks wait for people to rank them")
        return [ranking for ranking in store.rankings() if ranking.task in ours]


def _imported(path: Path, tasks: Sequence[RankingTask]) -> list[Ranking]:
    """Rankings of a file, each checked against its task; the first bad one is told by its line."""
    by_id = {task.id: task for task in tasks}
    rankings = read_records(path, Ranking)
    for number, ranking in enumerate(rankings, 1):
        try:
            if ranking.task not in by_id:
                raise ValueError(f"no task '{ranking.task}' among the {len(tasks)} tasks")
            ranking.check_against(by_id[ranking.task])
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    return rankings
