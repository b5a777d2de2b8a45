"""Tasks and rankings out of files: our own, Label Studio's export, Argilla's records."""

from pathlib import Path
from typing import Literal

from labeling_ui.argilla import from_argilla
from labeling_ui.label_studio import from_label_studio
from reward_models.records import Ranking, RankingTask, UniqueKeys, read_rankings, read_tasks
from reward_models.row_files import read_rows

Source = Literal["jsonl", "label-studio", "argilla"]


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
