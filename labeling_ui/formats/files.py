"""What a store holds, as files: our JSON lines, TRL's preference pairs, and the forms of others."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from labeling_ui.formats.argilla import from_argilla, to_argilla
from labeling_ui.formats.jsonl import write_outcomes
from labeling_ui.formats.label_studio import from_label_studio, to_label_studio, write_label_studio
from labeling_ui.formats.trl import preference_pairs
from labeling_ui.store.store import Store
from labeling_ui.tasks.adjudication import adjudications, settle
from reward_models.atomic_files import write_jsonl
from reward_models.records import Ranking, RankingTask, UniqueKeys, read_rankings, read_tasks
from reward_models.row_files import read_rows

Row = dict[str, Any]
Source = Literal["jsonl", "label-studio", "argilla"]
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


def read_labels(place: Path, form: Source) -> tuple[list[RankingTask], list[Ranking]]:
    """What a file holds, or for `jsonl` a folder with tasks.jsonl and perhaps rankings.jsonl.

    ValueError names the file, and the line or entry, of what cannot be read or stands twice.
    """
    match form:
        case "jsonl":
            return _our_own(place)
        case "label-studio":
            read = from_label_studio
        case "argilla":
            read = from_argilla
    once = UniqueKeys()
    tasks: list[RankingTask] = []
    rankings: list[Ranking] = []
    for where, row in read_rows(place):
        try:
            some, theirs = read([row])
        except KeyError as error:
            raise ValueError(f"{where}: key {error} is missing; expected {form}'s form") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{where}: {error}; expected {form}'s form") from None
        for task in some:
            once.add(where, f"task '{task.id}'", task.id)
        tasks += some
        rankings += theirs
    return tasks, rankings


def _our_own(place: Path) -> tuple[list[RankingTask], list[Ranking]]:
    if place.is_file():
        return read_tasks(place), []
    tasks = read_tasks(place / "tasks.jsonl")
    path = place / "rankings.jsonl"
    return tasks, read_rankings(path, tasks) if path.is_file() else []
