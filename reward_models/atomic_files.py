"""Files and folders that are written beside their place and renamed when they are complete."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield the path of a file or folder to write, which takes the place of `path` at the end.

    A reader never sees half of it, and a kill leaves `path` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    remove(aside)
    yield aside
    if aside.is_dir():
        remove(path)
        aside.rename(path)
    else:
        aside.replace(path)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON; ValueError where it holds NaN or infinity."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON object a line."""
    with written_aside(path) as aside, aside.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def empty_unless_same(folder: Path, name: str, settings: str) -> None:
    """Make the folder, without what other settings than those in its file `name` left in it."""
    path = folder / name
    if not path.is_file() or path.read_text(encoding="utf-8") != settings:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        path.write_text(settings, encoding="utf-8")
