"""Files of samples, read row by row as often as needed, so that texts never fill the memory.

A first reading finds copies by hash and checks the columns; the second yields completions. What is
dropped or assumed on the way is said in `notes`.

Dimension key:  R rows in the order of the files.
"""

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.alignment import Answered
from pipeline.evaluation.copies import Copies, Order, Row
from pipeline.evaluation.foreign import UNNUMBERED, Layout, completion_of, layout_of
from pipeline.evaluation.prompt_numbers import PromptNumbers, SampleNumbers
from pipeline.evaluation.samples import Completion
from reward_models.records import read_jsonl
from stages.progress import Report, Step, silent

Raw = tuple[Path, int, Row]  # file, line, column to value
_JSON = {".jsonl", ".json", ".ndjson"}
_OWN = {"id", "model", "prompt", "completion", "suite"}  # keys of our own samples.jsonl
_EVERY = 1000  # rows between two words about progress


@dataclass(slots=True)
class SampleFiles:
    """Files whose copies are known; `models` in the order in which the files number them."""

    paths: Sequence[Path]
    layouts: Mapping[Path, Layout | None]  # None: our own samples.jsonl
    kept_R: NDArray[np.bool_]  # False: a copy
    models: Sequence[str]
    answered: Answered
    number: Mapping[str, int]  # of each prompt, by its id
    notes: list[str] = field(default_factory=list)

    def gives(self, score: str) -> bool:
        """Whether any file brings this score of its own."""
        return any(
            layout is not None and score in layout.scores for layout in self.layouts.values()
        )

    def rows(self, report: Report = silent) -> Iterator[Completion]:
        """Completions without copies, numbered within model and prompt."""
        named: dict[tuple[str, str, str], SampleNumbers] = {}
        total = len(self.kept_R)
        for place, (path, line, raw) in enumerate(_raw_rows(self.paths, [])):
            if (place + 1) % _EVERY == 0 or place + 1 == total:
                report(Step(place + 1, total))
            if not self.kept_R[place]:
                continue
            row = _completion(path, line, raw, self.layouts[path])
            group = (row.model, row.suite, row.prompt_type)
            if group not in named:
                named[group] = SampleNumbers(len(self.number))
            wanted = None if row.k == UNNUMBERED else row.k
            k, new = named[group].take(self.number[row.id], wanted)
            if not new:
                raise ValueError(
                    f"{path}:{line}: model '{row.model}', prompt type '{row.prompt_type}': two "
                    f"rows are sample {k} of prompt '{row.prompt[:40]}'"
                )
            yield replace(row, k=k)
        if (most := max((max(each.taken) for each in named.values()), default=0)) > 1:
            self.notes.append(
                f"up to {most} completions of one model to one prompt; the prompt is the unit"
            )


def open_samples(paths: Sequence[Path], columns: Mapping[str, str]) -> SampleFiles:
    """Check the files and find their copies. Raises ValueError `file:line: ...` on bad rows."""
    notes: list[str] = []
    kept = _different(paths, notes)
    layouts: dict[Path, Layout | None] = {}
    order = Order()
    copies, prompts = Copies(), PromptNumbers()
    for path, line, raw in _raw_rows(kept, notes):
        if path not in layouts:
            own = path.suffix in _JSON and raw.keys() >= _OWN and not columns
            layouts[path] = None if own else layout_of(path, set(raw), columns)
        row = _completion(path, line, raw, layouts[path])
        copies.add((row.model, row.prompt_type), raw)
        prompts.add((row.suite, row.prompt_type), row.model, row.id)
        order.add(row.model, raw, ours=layouts[path] is None)
    for path in kept:
        if path not in layouts:
            raise ValueError(f"{path}: no rows in it")
    return SampleFiles(
        kept, layouts, copies.settle(notes), order.models(), prompts.answered(), prompts.number,
        notes,
    )  # fmt: skip


def _different(paths: Sequence[Path], notes: list[str]) -> list[Path]:
    seen: dict[str, Path] = {}
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest in seen:
            notes.append(f"{path} has the same content as {seen[digest]}; it is counted once")
        else:
            seen[digest] = path
    return list(seen.values())


def _raw_rows(paths: Sequence[Path], notes: list[str]) -> Iterator[Raw]:
    """Rows with every CSV value as the text that stands in the file, quoted newlines included."""
    for path in paths:
        if path.suffix in _JSON:
            yield from ((path, line, row) for line, row in read_jsonl(path))
        else:
            yield from _csv_rows(path, notes)


def _csv_rows(path: Path, notes: list[str]) -> Iterator[Raw]:
    lines = _csv_lines(path)
    _, header = next(lines, (1, []))
    if len(set(header)) != len(header):
        raise ValueError(f"{path}:1: a column name occurs twice in {header}")
    for line, values in lines:
        if values == header:
            notes.append(f"{path}:{line}: the header again; skipped")
        elif len(values) == len(header):
            yield path, line, dict(zip(header, values, strict=True))
        elif values:
            raise ValueError(f"{path}:{line}: {len(values)} values, expected {len(header)}")


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        try:
            for values in reader:
                yield reader.line_num, values
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: not CSV ({error})") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{reader.line_num + 1}: not UTF-8 ({error.reason})") from None


def _completion(path: Path, line: int, raw: Row, layout: Layout | None) -> Completion:
    try:
        return Completion.from_json(raw) if layout is None else completion_of(raw, layout)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}:{line}: {error}") from None
