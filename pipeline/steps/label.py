"""Rankings of the sampled outputs: from simulated annotators, people, or a file.

All three leave `tasks.jsonl` and `rankings.jsonl`; simulated annotators and people write through
the same store. People rank in the browser while the run waits for them.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from labeling_ui.store.store import Store
from labeling_ui.tasks.adjudication import settled_rankings
from pipeline.config.experiment import ImportedRankings, Labeling, SimulatedAnnotators
from pipeline.config.labeling import HumanAnnotators
from pipeline.labeling.settings import STORE, add_known, check_room, serve_store
from pipeline.runs.failures import PeopleNeeded
from pipeline.runs.stage import Source, Work, in_round, latest
from pipeline.steps.step import DataFolder, ExperimentStage
from reward_models.atomic_files import write_jsonl
from reward_models.records import (
    Prompt,
    Ranking,
    RankingTask,
    Use,
    read_rankings,
    read_records,
    read_tasks,
)
from stages.config import without_external_names
from stages.data.preferences import load_pairs
from stages.progress import Report, Step

TRANSACTION = 100  # rankings of simulated annotators


@dataclass(frozen=True)
class Label(ExperimentStage):
    """Collect rankings of a round's tasks from whoever the config names."""

    kind = "label"

    @property
    def about(self) -> str:
        return f"rankings: {self.config.labeling.kind}"

    @property
    def work(self) -> Work:
        kinds: dict[str, Work] = {"human": "people", "imported": "copying"}
        return kinds.get(self.config.labeling.kind, "computing")

    @property
    def tasks(self) -> Path:
        """The tasks to be ranked: the config's own, or the outputs that the run sampled."""
        sampled = self.folder / in_round("sample", self.round) / "tasks.jsonl"
        return tasks_file(self.config.labeling) or sampled

    def inputs(self) -> Mapping[str, Source]:
        match self.config.labeling:
            case ImportedRankings(tasks=None, rankings=rankings):
                return {"rankings": Path(rankings)}
            case ImportedRankings(rankings=rankings):
                return {"tasks": self.tasks, "rankings": Path(rankings)}
            case HumanAnnotators():
                return {"tasks": self.tasks}
            case SimulatedAnnotators():
                prompts = self.folder / "data/ranking_prompts.jsonl"
                return {"tasks": self.tasks, "prompts": prompts}

    def settings(self) -> Mapping[str, Any]:
        labeling, seed = self.config.labeling, self.config.seed
        if not isinstance(labeling, HumanAnnotators):
            return {"seed": seed, "labeling": without_external_names(labeling)}
        # How the page is served decides nothing; with more answers the reward model is trained
        # again.
        decisive = labeling.model_dump(mode="json", include={"kind", "per_task", "enough"})
        answers = _answers_so_far(labeling, self.folder, self.folder / self.name / "tasks.jsonl")
        more = {"use": "people", "choose": "random"}
        changed = {key: value for key in more if (value := getattr(labeling, key)) != more[key]}
        return {"seed": seed, "labeling": decisive | changed, "answers": answers}

    def final_settings(self, out: Path) -> Mapping[str, Any]:
        if not isinstance(self.config.labeling, HumanAnnotators):
            return {}
        return {"answers": _digest(read_records(out / "rankings.jsonl", Ranking))}

    def check_settings(self) -> None:
        if isinstance(self.config.labeling, HumanAnnotators):
            check_room(self.config.labeling)

    def labels(self, out: Path) -> set[str]:
        return {ranking.kind for ranking in read_records(out / "rankings.jsonl", Ranking)}

    def run(self, out: Path, report: Report) -> None:
        """Write tasks and rankings; raise PeopleNeeded while too few are ranked."""
        labeling = self.config.labeling
        if isinstance(labeling, ImportedRankings) and labeling.tasks is None:
            tasks, rankings = load_pairs(labeling.rankings)
        else:
            tasks = read_tasks(self.tasks)
            match labeling:
                case SimulatedAnnotators():
                    prompts = self.data.prompts("ranking")
                    seed = in_round(str(self.config.seed), self.round)
                    rankings = _simulated(labeling, tasks, prompts, seed, out, report)
                case HumanAnnotators():
                    rankings = ranked_by_people(labeling, tasks, self.folder, report)
                case ImportedRankings():
                    rankings = used(read_rankings(Path(labeling.rankings), tasks), labeling.use)
        if isinstance(labeling, HumanAnnotators) and labeling.choose == "uncertainty":
            from pipeline.labeling.choosing import marked

            tasks = marked(tasks)
        write_jsonl(out / "tasks.jsonl", (task.to_json() for task in tasks))
        write_jsonl(out / "rankings.jsonl", (ranking.to_json() for ranking in rankings))


def tasks_file(labeling: Labeling) -> Path | None:
    """Return the file of tasks that the config names; None where the run samples outputs."""
    if isinstance(labeling, SimulatedAnnotators) or labeling.tasks is None:
        return None
    return Path(labeling.tasks)


def labels_until(run: Path, number: int) -> list[Path]:
    """Return the folders of the rankings that the reward model of a round learns from."""
    return [run / in_round("label", each) for each in range(1, number + 1)]


def read_labels(folders: Sequence[Path]) -> tuple[list[RankingTask], list[Ranking]]:
    """Return the tasks and rankings of all these folders together."""
    tasks = [task for each in folders for task in read_records(each / "tasks.jsonl", RankingTask)]
    rankings = [row for each in folders for row in read_records(each / "rankings.jsonl", Ranking)]
    return tasks, rankings


def judge_agreement_of(run: Path) -> float | None:
    """Return the share of pairs that the judge orders as a run's simulated annotators did."""
    from pipeline.quickstart.annotators import judge_agreement

    folder = latest(run, "label")
    if not (folder / "rankings.jsonl").is_file():
        return None
    tasks, rankings = read_labels([folder])
    if {ranking.kind for ranking in rankings} != {"simulated"}:
        return None
    worlds = _worlds(tasks, DataFolder(run / "data").prompts("ranking"))
    return judge_agreement(tasks, worlds, rankings)


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

    worlds = _worlds(tasks, prompts)
    rankings = simulate(tasks, worlds, seed, labeling.taste, labeling.overlap)
    for leftover in out.glob(f"{STORE}*"):
        leftover.unlink()
    with closing(Store(out / STORE)) as store:
        store.add_tasks(tasks, overlap=max(Counter(ranking.task for ranking in rankings).values()))
        for begin in range(0, len(rankings), TRANSACTION):
            store.submit_all(rankings[begin : begin + TRANSACTION])
            report(Step(min(begin + TRANSACTION, len(rankings)), len(rankings)))
        # a program has no time of day, and two runs with one seed write one file
        return [replace(ranking, time=None) for ranking in store.rankings()]


def _worlds(
    tasks: Sequence[RankingTask], prompts: Sequence[Prompt]
) -> dict[str, Mapping[str, object]]:
    """Return the facts that the judge goes by, by task."""
    worlds = {(p.history, p.context, p.prompt): p.extra["world"] for p in prompts}
    return {task.id: worlds[task.history, task.context, task.prompt] for task in tasks}


def store_of(labeling: HumanAnnotators, run: Path) -> str:
    """Return the store of people's rankings: beside the stages, so that no restart touches it."""
    return labeling.store or str(run / STORE)


def ranked_by_people(
    labeling: HumanAnnotators, tasks: Sequence[RankingTask], run: Path, report: Report
) -> list[Ranking]:
    """Serve the page until enough is ranked, if the config says so; return people's rankings.

    Raise PeopleNeeded while too few are ranked.
    """
    ids = {task.id for task in tasks}
    allowed = int(len(tasks) * (1 - labeling.enough))
    with closing(Store(store_of(labeling, run))) as store:
        store.add_tasks(tasks, overlap=labeling.per_task)
        add_known(labeling, store)
        order = None
        if labeling.choose == "uncertainty":
            from pipeline.labeling.choosing import chooser

            assert labeling.reward_model is not None
            order = chooser(labeling.reward_model, tasks)

        def is_enough() -> bool:
            if order is not None:
                order.refresh(store)
            left = _num_open(labeling, tasks, store)
            report(Step(len(tasks) - left, len(tasks) - allowed))
            return left <= allowed

        if labeling.wait and not is_enough():
            serve_store(labeling, store, tasks, until=is_enough)
        left = _num_open(labeling, tasks, store)
        if left > allowed:
            raise PeopleNeeded(
                f"{len(tasks) - left} of {len(tasks)} tasks are ranked and "
                f"{len(tasks) - allowed} are needed: {left - allowed} more wait for people"
            )
        return [ranking for ranking in _used(store, labeling.use) if ranking.task in ids]


def used(rankings: Iterable[Ranking], use: Use) -> list[Ranking]:
    """Leave out judges' rankings where the config uses people's alone.

    Where it uses judges', people's stay, to score the reward model by.
    """
    return [one for one in rankings if use != "people" or one.kind != "judge"]


def _used(store: Store, use: Use) -> list[Ranking]:
    """Return the rankings that count: people's, settled, and judges' where the config uses them."""
    return [*settled_rankings(store), *used(store.rankings(use="judges"), use)]


def use_of(labeling: Labeling) -> Use:
    """Return whose rankings the reward model learns from."""
    return "people" if isinstance(labeling, SimulatedAnnotators) else labeling.use


def _num_open(labeling: HumanAnnotators, tasks: Sequence[RankingTask], store: Store) -> int:
    """Return the number of tasks that still need an answer (a ranking or a skip)."""
    answers = Counter(ranking.task for ranking in store.rankings(skipped=True))
    wanted = store.overlaps()  # more than `per_task` where overlap adapts
    return sum(answers[task.id] < max(labeling.per_task, wanted[task.id]) for task in tasks)


def _answers_so_far(labeling: HumanAnnotators, run: Path, tasks: Path) -> str:
    """Return a hash of people's rankings by now."""
    store_path = store_of(labeling, run)
    if not tasks.is_file() or ("://" not in store_path and not Path(store_path).exists()):
        return "none yet"
    ids = {task.id for task in read_records(tasks, RankingTask)}
    with closing(Store(store_path)) as store:
        return _digest(ranking for ranking in _used(store, labeling.use) if ranking.task in ids)


def _digest(rankings: Iterable[Ranking]) -> str:
    rows = [json.dumps(ranking.to_json(), sort_keys=True) for ranking in rankings]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()
