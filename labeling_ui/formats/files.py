"""Export of a store and import of labels, in every format."""

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from labeling_ui.formats.argilla import from_argilla, to_argilla
from labeling_ui.formats.jsonl import read_jsonl_files, write_jsonl_files
from labeling_ui.formats.label_studio import from_label_studio, to_label_studio, write_label_studio
from labeling_ui.formats.trl import preference_pairs
from labeling_ui.store.store import Store
from labeling_ui.tasks.adjudication import adjudications, settle
from reward_models.atomic_files import write_jsonl
from reward_models.records import Ranking, RankingTask, UniqueKeys
from reward_models.row_files import read_rows

Source = Literal["jsonl", "label-studio", "argilla"]
Format = Literal["jsonl", "trl", "label-studio", "argilla", "audit"]


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
