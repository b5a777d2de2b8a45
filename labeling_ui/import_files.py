"""Tasks and rankings out of files: our own JSON lines, Label Studio's export, Argilla's records."""

import json
from pathlib import Path
from typing import Any, Literal

from labeling_ui.argilla import from_argilla
from labeling_ui.label_studio import from_label_studio
from reward_models.records import Ranking, RankingTask, read_jsonl, read_records

Source = Literal["jsonl", "label-studio", "argilla"]


def read_labels(place: Path, form: Source) -> tuple[list[RankingTask], list[Ranking]]:
    """What a file holds, or for `jsonl` a folder with tasks.jsonl and perhaps rankings.jsonl.

    ValueError names the file, and the line or entry, of what cannot be read.
    """
    match form:
        case "jsonl":
            return _our_own(place)
        case "label-studio":
            read = from_label_studio
        case "argilla":
            read = from_argilla
    tasks: list[RankingTask] = []
    rankings: list[Ranking] = []
    for where, row in _rows(place):
        try:
            some, theirs = read([row])
        except KeyError as error:
            raise ValueError(f"{where}: key {error} is missing; expected {form}'s form") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{where}: {error}; expected {form}'s form") from None
        tasks += some
        rankings += theirs
    return tasks, rankings


def _our_own(place: Path) -> tuple[list[RankingTask], list[Ranking]]:
    if place.is_file():
        return read_records(place, RankingTask), []
    tasks = read_records(place / "tasks.jsonl", RankingTask)
    path = place / "rankings.jsonl"
    if not path.is_file():
        return tasks, []
    by_id = {task.id: task for task in tasks}
    rankings = []
    for number, row in read_jsonl(path):
        try:
            ranking = Ranking.from_json(row)
            if ranking.task not in by_id:
                raise ValueError(f"there is no task '{ranking.task}' in {place / 'tasks.jsonl'}")
            ranking.check_against(by_id[ranking.task])
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        rankings.append(ranking)
    return tasks, rankings


def _rows(place: Path) -> list[tuple[str, dict[str, Any]]]:
    """JSON lines, or one JSON list as Label Studio writes it, each entry with where it stands."""
    if not place.is_file():
        raise ValueError(f"{place}: no such file")
    if place.suffix != ".json":
        return [(f"{place}:{number}", row) for number, row in read_jsonl(place)]
    try:
        rows = json.loads(place.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{place}: not JSON ({error})") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{place}: expected a list of objects")
    return [(f"{place}, entry {number}", row) for number, row in enumerate(rows, 1)]
