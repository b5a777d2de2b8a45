"""What a store holds, as files: our JSON lines, TRL's preference pairs, and the forms of others."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from labeling_ui.adjudication import adjudications, settle
from labeling_ui.argilla import to_argilla
from labeling_ui.label_studio import to_label_studio, write_label_studio
from labeling_ui.outcomes import write_outcomes
from labeling_ui.store import Store
from reward_models.conversations import Turn
from reward_models.records import Ranking, RankingTask, write_jsonl

Row = dict[str, Any]
Format = Literal["jsonl", "trl", "label-studio", "argilla", "audit"]


def write_export(store: Store, out: Path, form: Format) -> list[Path]:
    """Write all tasks and their latest rankings, or the log, to a folder; return the files.

    JSON lines hold what people said, the other kinds of tasks in files of their own; pairs to train
    on hold what counts, so that a settled disagreement is in them once.
    """
    tasks, rankings = store.tasks(), store.rankings(skipped=True)
    out.mkdir(parents=True, exist_ok=True)
    match form:
        case "jsonl":
            files: dict[str, Iterable[Row]] = {
                "tasks.jsonl": (task.to_json() for task in tasks),
                "rankings.jsonl": (ranking.to_json() for ranking in rankings),
            }
        case "audit":
            files = {"events.jsonl": (asdict(event) for event in store.events())}
        case "trl":
            counted = settle(rankings, adjudications(store))
            files = {"preferences.jsonl": preference_pairs(tasks, counted)}
        case "label-studio":
            return write_label_studio(out, to_label_studio(tasks, rankings))
        case "argilla":
            files = {"argilla.jsonl": to_argilla(tasks, rankings)}
    for name, rows in files.items():
        write_jsonl(out / name, rows)
    others = write_outcomes(store, out) if form == "jsonl" else []
    return [*(out / name for name in files), *others]


def preference_pairs(tasks: Sequence[RankingTask], rankings: Iterable[Ranking]) -> list[Row]:
    """One row for every untied pair, in TRL's explicit-prompt preference form.

    `margin` is the distance in ranks; a context passage stands before its prompt. Where any
    task has earlier turns, all rows are in the conversational form, since a column has one type.
    """
    by_id = {task.id: task for task in tasks}
    is_conversational = any(task.history for task in tasks)
    rows = []
    for ranking in rankings:
        task = by_id[ranking.task]
        texts = {response.id: response.text for response in task.responses}
        asked = task.prompt if task.context is None else f"{task.context}\n\n{task.prompt}"
        for better, worse in ranking.comparisons():
            said = {"prompt": asked, "chosen": texts[better], "rejected": texts[worse]}
            rows.append(
                {
                    **(_conversational(task.history, said) if is_conversational else said),
                    "margin": ranking.ranks[worse] - ranking.ranks[better],
                    "task": task.id,
                    "annotator": ranking.annotator,
                    "kind": ranking.kind,
                }
            )
    return rows


def _conversational(history: Sequence[Turn], said: dict[str, str]) -> Row:
    prompt = [turn.to_json() for turn in (*history, Turn("user", said["prompt"]))]
    answers = {name: [Turn("assistant", said[name]).to_json()] for name in ("chosen", "rejected")}
    return {"prompt": prompt, **answers}
