"""Files of samples, read row by row as often as needed, so that texts never fill the memory.

A first reading finds copies by hash and checks the columns; the second yields completions. What is
dropped or assumed on the way is said in `notes`.
"""

import csv
import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from pipeline.evaluation.foreign import UNNUMBERED, Layout, completion_of, layout_of
from pipeline.evaluation.samples import Completion
from reward_models.records import Record
from stages.progress import Report, Step, silent

Row = Mapping[str, Any]
_INDEX = {"", "index", "Unnamed: 0"}  # columns that number the rows
_OWN = {"id", "model", "prompt", "completion", "suite"}  # keys of our samples.jsonl


@dataclass(slots=True)
class SampleFiles:
    """Files whose copies have been counted; `order` holds the models as their files list them."""

    paths: list[Path]
    layouts: dict[Path, Layout | None]
    times: dict[bytes, int]  # how often a row counts that occurs several times
    order: list[str]
    notes: list[str] = field(default_factory=list)

    def rows(self, report: Report = silent) -> Iterator[Completion]:
        """Completions, numbered within model and prompt; ValueError `file:line: ...` on bad ones."""
        found: Counter[bytes] = Counter()
        taken: dict[tuple[str, str, str, str], set[int]] = defaultdict(set)
        for path, line, raw in _raw_rows(self.paths, report):
            key = _key(raw)
            found[key] += 1
            if found[key] > self.times.get(key, 1):
                continue
            yield _numbered(_completion(path, line, raw, self.layouts[path]), taken)
        most = max(map(len, taken.values()), default=0)
        if most > 1:
            self.notes.append(
                f"up to {most} completions of one model to one prompt; the prompt is the unit"
            )


def open_samples(paths: Sequence[Path], columns: Mapping[str, str]) -> SampleFiles:
    """Check the files and count their copies. Raises ValueError on what cannot be read."""
    notes: list[str] = []
    kept = _different(paths, notes)
    layouts: dict[Path, Layout | None] = {}
    exact: Counter[bytes] = Counter()  # rows with their number
    groups: dict[tuple[str, str], Counter[bytes]] = defaultdict(Counter)
    first: dict[str, float] = {}
    number = 0
    for number, (path, line, raw) in enumerate(_raw_rows(kept, silent, notes), 1):
        if path not in layouts:
            own = raw.keys() >= _OWN and not columns
            layouts[path] = None if own else layout_of(path, set(raw), columns)
        row = _completion(path, line, raw, layouts[path])
        exact[_key(raw)] += 1
        groups[row.model, row.prompt_type][_key(raw, numbered=False)] += 1
        first[row.model] = min(first.get(row.model, math.inf), _place(raw, number))
    for path in kept:
        if path not in layouts:
            raise ValueError(f"{path}: no rows in it")
    times = _times(exact, groups, is_numbered=...)
    return SampleFiles(kept, layouts, times, sorted(first, key=first.__getitem__), notes)
