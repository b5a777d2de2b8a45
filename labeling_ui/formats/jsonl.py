"""What the room's other tasks come to, as files that the pipeline reads as they are.

demonstrations.jsonl  stage one's data
prompts.jsonl         prompts to sample from
ratings.jsonl         samples with people's ratings as columns; `rlhf score` reads them
verdicts.jsonl        samples with `preferred`: 1 won, .5 tied, 0 lost, a mean over annotators
adjudications.jsonl   rankings that settle a disagreement
"""

from pathlib import Path
from typing import Any

from labeling_ui.store.records import TextTask, answers_of
from labeling_ui.store.store import Store
from labeling_ui.tasks.adjudication import adjudications
from labeling_ui.tasks.writing import demonstrations, prompts
from reward_models.atomic_files import write_jsonl
from reward_models.records import Prompt, Ranking, RankingTask

Row = dict[str, Any]


def write_outcomes(store: Store, out: Path) -> list[Path]:
    """Write a file for each kind of task that has an answer; return the files."""
    compared, judged = comparisons(store)
    files = {
        "demonstrations.jsonl": [one.to_json() for one in demonstrations(store)],
        "prompts.jsonl": [one.to_json() for one in prompts(store)],
        "ratings.jsonl": ratings(store),
        "comparisons/tasks.jsonl": [one.to_json() for one in compared],
        "comparisons/rankings.jsonl": [one.to_json() for one in judged],
        "adjudications.jsonl": [one.to_json() for one in adjudications(store)],
    }
    there = {out / name: rows for name, rows in files.items() if rows}
    for path, rows in there.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, rows)
    return list(there)


def ratings(store: Store) -> list[Row]:
    """One row for each text and annotator, with every scale under its own name."""
    rows = []
    for task, row in answers_of(store, "rating"):
        assert isinstance(task, TextTask)
        said = {"quality": row.get("rating"), **row.get("scales", {})}
        flags = {
            **dict.fromkeys(row.get("flags", []), 1),
            **dict.fromkeys(row.get("flags_no", []), 0),
        }
        head = (
            Prompt(task.prompt, history=task.history).to_json() if task.prompt else {"prompt": ""}
        )
        head = {"id": task.id, **head, "model": task.model or "unknown", "completion": task.text}
        given = {name: value for name, value in {**said, **flags}.items() if value is not None}
        rows.append({**head, **given, "annotator": row["annotator"]})
    return rows


def comparisons(store: Store) -> tuple[list[RankingTask], list[Ranking]]:
    """The pairs that were judged and who judged them how, apart from rankings to train on."""
    tasks: dict[str, RankingTask] = {}
    judged = []
    for task, row in answers_of(store, "comparison"):
        assert isinstance(task, RankingTask)
        tasks[task.id] = task
        judged.append(Ranking.from_json(row))
    return list(tasks.values()), judged
