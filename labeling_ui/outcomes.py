"""What the room's other tasks come to, as files that the pipeline reads as they are.

demonstrations.jsonl  stage one's data
prompts.jsonl         prompts to sample from
ratings.jsonl         samples with people's ratings as columns; `rlhf score` reads them
verdicts.jsonl        samples with `preferred`: 1 won, .5 tied, 0 lost, a mean over annotators
adjudications.jsonl   rankings that settle a disagreement
"""

from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from labeling_ui.adjudication import adjudications
from labeling_ui.room_tasks import TextTask, answers_of
from labeling_ui.store import Store
from labeling_ui.writing import demonstrations, prompts
from reward_models.records import Ranking, RankingTask, write_jsonl

Row = dict[str, Any]


def write_outcomes(store: Store, out: Path) -> list[Path]:
    """Write a file for each kind of task that has an answer; return the files."""
    files = {
        "demonstrations.jsonl": [one.to_json() for one in demonstrations(store)],
        "prompts.jsonl": [one.to_json() for one in prompts(store)],
        "ratings.jsonl": ratings(store),
        "verdicts.jsonl": verdicts(store),
        "adjudications.jsonl": [one.to_json() for one in adjudications(store)],
    }
    out.mkdir(parents=True, exist_ok=True)
    there = {out / name: rows for name, rows in files.items() if rows}
    for path, rows in there.items():
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
        head = _head(task.id, task.prompt or "", task.model or "unknown", task.text)
        given = {name: value for name, value in {**said, **flags}.items() if value is not None}
        rows.append({**head, **given, "annotator": row["annotator"]})
    return rows


def verdicts(store: Store) -> list[Row]:
    """Two rows for each comparison, one for each policy, the mean over those who judged it."""
    judged: defaultdict[str, list[Ranking]] = defaultdict(list)
    by_id: dict[str, RankingTask] = {}
    for task, row in answers_of(store, "comparison"):
        assert isinstance(task, RankingTask)
        by_id[task.id] = task
        judged[task.id].append(Ranking.from_json(row))
    rows = []
    for name, task in by_id.items():
        for one, other in (task.responses, task.responses[::-1]):
            won = [_points(r.ranks[one.id], r.ranks[other.id]) for r in judged[name]]
            head = _head(task.extra.get("prompt_id", name), task.prompt, one.model, one.text)
            context = {"context": task.context, "category": task.category}
            told = {key: value for key, value in context.items() if value is not None}
            rows.append({**head, **told, "against": other.model, "preferred": mean(won)})
    return rows


def _points(mine: int, other: int) -> float:
    return 0.5 if mine == other else float(mine < other)


def _head(name: str, prompt: str, model: str, text: str) -> Row:
    return {"id": name, "prompt": prompt, "model": model, "completion": text}
