"""Texts with a label, for probes: JSON lines {"text", "label"}, CSV with a header, or the hub.

A source is a `.jsonl` or `.csv` file or `hf:NAME`. Other names of the two fields can be
given; labels are read as text.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from stages.config_base import HUB
from stages.data.demonstrations import source_rows


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    """Texts and their labels, in the order of the source."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def of(self, places: list[int]) -> "LabelledTexts":
        """Those at the given places."""
        return LabelledTexts(
            tuple(self.texts[place] for place in places),
            tuple(self.labels[place] for place in places),
        )


def load_labelled_texts(source: str, *, text: str = "text", label: str = "label") -> LabelledTexts:
    """All rows of a source; ValueError `file:line: ...` at the first that has no text or label."""
    texts, labels = [], []
    for where, row in _rows(source):
        for field in (text, label):
            if field not in row:
                raise ValueError(f"{where}: no field '{field}'; it has {', '.join(map(str, row))}")
        said, named = row[text], row[label]
        if not isinstance(said, str) or not said.strip():
            raise ValueError(f"{where}: {text} is {said!r}; expected a text that is not empty")
        if isinstance(named, bool | float) or named in (None, ""):
            raise ValueError(f"{where}: {label} is {named!r}; expected a word or a whole number")
        texts.append(said)
        labels.append(str(named))
    if len(set(labels)) < 2:
        raise ValueError(f"{source}: {len(set(labels))} label(s) in {len(texts)} rows; expected 2+")
    return LabelledTexts(tuple(texts), tuple(labels))


def split_off(data: LabelledTexts, share: float, seed: int) -> tuple[LabelledTexts, LabelledTexts]:
    """Training texts and a random `share` of test texts, at least one of each."""
    places = list(range(len(data)))
    Random(f"probe/{seed}").shuffle(places)
    held = min(len(data) - 1, max(1, round(share * len(data))))
    return data.of(sorted(places[held:])), data.of(sorted(places[:held]))


def _rows(source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if source.startswith(HUB) or source.endswith(".jsonl"):
        yield from source_rows(source)
    elif source.endswith(".csv"):
        yield from _csv_rows(source)
    else:
        raise ValueError(f"{source}: expected a .jsonl or .csv file, or hf:NAME")


def _csv_rows(source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not Path(source).is_file():
        raise ValueError(f"{source}: no such file")
    with Path(source).open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        for row in reader:
            where = f"{source}:{reader.line_num}"
            if None in row or None in row.values():
                raise ValueError(f"{where}: not as many fields as the header has")
            yield where, row
