"""Export of a store and import of labels, in every format; rankings as TRL's preference pairs."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from labeling_ui.formats.argilla import from_argilla, to_argilla
from labeling_ui.formats.jsonl import read_jsonl_files, write_jsonl_files
from labeling_ui.formats.label_studio import from_label_studio, to_label_studio, write_label_studio
from labeling_ui.store.store import Store
from labeling_ui.tasks.adjudication import adjudications, settle
from reward_models.atomic_files import write_jsonl
from reward_models.conversations import Turn
from reward_models.records import Ranking, RankingTask, UniqueKeys
from reward_models.row_files import read_rows

Source = Literal["jsonl", "label-studio", "argilla"]
Format = Literal["jsonl", "trl", "label-studio", "argilla", "audit"]

Row = dict[str, Any]


def write_export(store: Store, out: Path, form: Format) -> list[Path]:
    """Write all tasks and their latest rankings, or the log, to a folder; return the files.

    JSON lines hold every person's answer, pairs to train on hold what counts: a settled
    disagreement is in them once.
    """
    out.mkdir(parents=True, exist_ok=True)
    tasks, rankings = store.tasks(), store.rankings(skipped=True)
    match form:
        case "jsonl":
            return write_jsonl_files(store, out)
        case "label-studio":
            return write_label_studio(out, to_label_studio(tasks, rankings))
        case "audit":
            path, rows = out / "events.jsonl", [asdict(event) for event in store.events()]
        case "trl":
            counted = settle(rankings, adjudications(store))
            path, rows = out / "preferences.jsonl", preference_pairs(tasks, counted)
        case "argilla":
            path, rows = out / "argilla.jsonl", to_argilla(tasks, rankings)
    write_jsonl(path, rows)
    return [path]


def read_labels(path: Path, form: Source) -> tuple[list[RankingTask], list[Ranking]]:
    """Read the tasks and rankings of a file, or for `jsonl` of a folder.

    ValueError names the file, and the line or entry, of what cannot be read or stands twice.
    """
    if form == "jsonl":
        return read_jsonl_files(path)
    parse = from_label_studio if form == "label-studio" else from_argilla
    unique = UniqueKeys()
    tasks: list[RankingTask] = []
    rankings: list[Ranking] = []
    for where, row in read_rows(path):
        try:
            row_tasks, row_rankings = parse([row])
        except KeyError as error:
            raise ValueError(f"{where}: key {error} is missing; expected {form}'s form") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{where}: {error}; expected {form}'s form") from None
        for task in row_tasks:
            unique.add(where, f"task '{task.id}'", task.id)
        tasks += row_tasks
        rankings += row_rankings
    return tasks, rankings


def preference_pairs(tasks: Sequence[RankingTask], rankings: Iterable[Ranking]) -> list[Row]:
    """Return one row for every untied pair, in TRL's explicit-prompt preference form.

    `margin` is the distance in ranks; a context passage stands before its prompt. Where any
    task has earlier turns, all rows are in the conversational form, since a column has one type.
    """
    by_id = {task.id: task for task in tasks}
    is_conversational = any(task.history for task in tasks)
    rows = []
    for ranking in rankings:
        task = by_id[ranking.task]
        texts = {response.id: response.text for response in task.responses}
        prompt = task.prompt if task.context is None else f"{task.context}\n\n{task.prompt}"
        for better, worse in ranking.comparisons():
            pair = {"prompt": prompt, "chosen": texts[better], "rejected": texts[worse]}
            rows.append(
                {
                    **(_conversational(task.history, pair) if is_conversational else pair),
                    "margin": ranking.ranks[worse] - ranking.ranks[better],
                    "task": task.id,
                    "annotator": ranking.annotator,
                    "kind": ranking.kind,
                }
            )
    return rows


def _conversational(history: Sequence[Turn], pair: dict[str, str]) -> Row:
    prompt = [turn.to_json() for turn in (*history, Turn("user", pair["prompt"]))]
    answers = {name: [Turn("assistant", pair[name]).to_json()] for name in ("chosen", "rejected")}
    return {"prompt": prompt, **answers}
