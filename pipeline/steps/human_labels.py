"""The labeling room in a run: people rank in the browser while the run waits for them."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from labeling_ui.store.store import Store
from labeling_ui.tasks.adjudication import settled_rankings
from pipeline.config.labeling import HumanAnnotators
from pipeline.labeling.settings import gold_of, serve_store
from pipeline.runs.failures import PeopleNeeded
from reward_models.records import Ranking, RankingTask, read_records
from stages.progress import Report, Step

STORE = "rankings.sqlite"
DECIDE = {"kind", "per_task", "enough"}  # the rest is about how it is served, or an input


def store_of(labeling: HumanAnnotators, run: Path) -> str:
    """Where people's rankings are: beside the stages, so that no stage's new start touches them."""
    return labeling.store if labeling.store is not None else str(run / STORE)


def num_open(labeling: HumanAnnotators, tasks: Sequence[RankingTask], store: Store) -> int:
    """How many tasks still need an answer (a ranking or a skip) from somebody."""
    answers = Counter(ranking.task for ranking in store.rankings(skipped=True))
    return sum(answers[task.id] < labeling.per_task for task in tasks)


def answers_so_far(labeling: HumanAnnotators, run: Path, stage: str = "label") -> str:
    """A hash of what is ranked by now: with more answers, the reward model is trained again."""
    where, tasks = store_of(labeling, run), run / stage / "tasks.jsonl"
    if not tasks.is_file() or ("://" not in where and not Path(where).exists()):
        return "none yet"
    ours = {task.id for task in read_records(tasks, RankingTask)}
    with closing(Store(where)) as store:
        return _hash(ranking for ranking in settled_rankings(store) if ranking.task in ours)


def answers_taken(out: Path) -> Mapping[str, str]:
    """The same hash, of what the finished labeling stage in `out` holds."""
    return {"answers": _hash(read_records(out / "rankings.jsonl", Ranking))}


def _hash(rankings: Iterable[Ranking]) -> str:
    said = [json.dumps(ranking.to_json(), sort_keys=True) for ranking in rankings]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def ranked_by_people(
    labeling: HumanAnnotators, tasks: Sequence[RankingTask], run: Path, report: Report
) -> list[Ranking]:
    """Serve the room until enough is ranked, if the config says so; then people's rankings.

    PeopleNeeded while too few are ranked.
    """
    ours = {task.id for task in tasks}
    allowed = int(len(tasks) * (1 - labeling.enough))
    with closing(Store(store_of(labeling, run))) as store:
        store.add_tasks(tasks, overlap=labeling.per_task)
        gold = gold_of(labeling)
        if gold is not None:
            gold.add_to(store)

        def is_enough() -> bool:
            left = num_open(labeling, tasks, store)
            report(Step(len(tasks) - left, len(tasks) - allowed))
            return left <= allowed

        if labeling.wait and not is_enough():
            serve_store(labeling, store, tasks, until=is_enough)
        left = num_open(labeling, tasks, store)
        if left > allowed:
            raise PeopleNeeded(
                f"{len(tasks) - left} of {len(tasks)} tasks are ranked and "
                f"{len(tasks) - allowed} are needed: {left - allowed} more wait for people"
            )
        return [ranking for ranking in settled_rankings(store) if ranking.task in ours]
