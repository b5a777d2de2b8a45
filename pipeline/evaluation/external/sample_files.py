"""Files of samples, read row by row as often as needed, so that texts never fill the memory.

A first reading finds copies by hash and checks the columns; the second yields completions. What is
dropped or assumed on the way is said in `notes`.

Dimension key:  R rows in the order of the files.
"""

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.external.columns import UNNUMBERED, Layout, completion_of, layout_of
from pipeline.evaluation.samples.alignment import Answered, PromptNumbers, SampleNumbers
from pipeline.evaluation.samples.records import Completion, completion_from
from reward_models.row_files import ending, read_rows
from stages.progress import Report, Step, silent

Row = Mapping[str, Any]
INDEX = {"", "index", "Unnamed: 0"}  # columns that number the rows
_DIGEST = np.dtype([("high", "u8"), ("low", "u8")])


class Copies:
    """Rows that can only be copies of others, found by their hashes alone.

    A row with a number is a copy of one that is equal in every column. Rows without a number may be
    samples that happen to agree; they are copies if, within a model and prompt type, the numbers of
    times they occur have a common divisor, as in a file that was appended to itself. The second
    rule also holds for rows that were numbered anew after the copying.
    """

    def __init__(self) -> None:
        self.numbered = bytearray()  # a row's digest; of its place where it has no number
        self.bare = bytearray()  # its digest without the number
        self.group = array("i")
        self.groups: dict[tuple[str, str], int] = {}

    def add(self, group: tuple[str, str], raw: Row) -> None:
        """Count a row of this model and prompt type."""
        bare = _digest(raw, numbered=False)
        self.bare += bare
        if INDEX.isdisjoint(raw):
            self.numbered += len(self.group).to_bytes(16, "little")
        else:
            self.numbered += _digest(raw)
        self.group.append(self.groups.setdefault(group, len(self.groups)))

    def settle(self, notes: list[str]) -> NDArray[np.bool_]:
        """Whether each row counts, (R,); adds a sentence that says how many do not."""
        kept_R = np.zeros(len(self.group), dtype=bool)
        if not kept_R.size:
            return kept_R
        _, first = np.unique(np.frombuffer(self.numbered, _DIGEST), return_index=True)
        first.sort()
        _, same, count = np.unique(
            np.frombuffer(self.bare, _DIGEST)[first], return_inverse=True, return_counts=True
        )
        group_of = np.zeros(len(count), dtype=np.int32)
        group_of[same] = np.frombuffer(self.group, np.int32)[first]
        divisor = np.zeros(len(self.groups), dtype=np.int64)
        np.gcd.at(divisor, group_of, count)
        kept_R[first] = _occurrence(same, count) < (count // divisor[group_of])[same]
        if dropped := int(kept_R.size - kept_R.sum()):
            notes.append(f"{dropped} of {kept_R.size} rows repeat another row exactly; dropped")
        return kept_R


def _occurrence(same_R: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many equal rows stand before each row."""
    order = np.argsort(same_R, kind="stable")
    place_R = np.empty_like(same_R)
    place_R[order] = np.arange(same_R.size) - np.repeat(np.cumsum(count) - count, count)
    return place_R


def _digest(raw: Row, *, numbered: bool = True) -> bytes:
    kept = raw if numbered else {name: raw[name] for name in raw if name not in INDEX}
    text = json.dumps(kept, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class Order:
    """The models in an order that shuffled rows do not change, since differences have a sign.

    Where rows are numbered, by the models' lowest numbers; else as they stand, if each model's rows
    stand together, and by name if they do not. Files of our own keep the order of training.
    """

    def __init__(self) -> None:
        self.ours = True
        self.numbers: dict[str, int] = {}
        self.names: dict[str, None] = {}
        self.last: str | None = None
        self.together = True

    def add(self, model: str, raw: Row, *, ours: bool) -> None:
        """A row of this model."""
        self.ours = self.ours and ours
        if model != self.last:
            self.together = self.together and model not in self.names
            self.names[model] = None
            self.last = model
        for name in INDEX & raw.keys():
            if str(raw[name]).strip().isdecimal():
                number = int(raw[name])
                self.numbers[model] = min(number, self.numbers.get(model, number))

    def models(self) -> list[str]:
        """Each once."""
        names = list(self.names)
        if self.ours:
            return names
        if all(name in self.numbers for name in names):
            return sorted(names, key=self.numbers.__getitem__)
        return names if self.together else sorted(names)


Raw = tuple[Path, str, Row]  # file, place in it, column to value
_JSON = {".jsonl", ".json", ".ndjson"}
_OWN = {"id", "model", "completion", "suite"}  # keys of our own samples.jsonl, and a prompt
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
        for place, (path, where, raw) in enumerate(_raw_rows(self.paths, [])):
            if (place + 1) % _EVERY == 0 or place + 1 == total:
                report(Step(place + 1, total))
            if not self.kept_R[place]:
                continue
            row = _completion(where, raw, self.layouts[path])
            group = (row.model, row.suite, row.prompt_type)
            if group not in named:
                named[group] = SampleNumbers(len(self.number))
            wanted = None if row.k == UNNUMBERED else row.k
            k, new = named[group].take(self.number[row.id], wanted)
            if not new:
                raise ValueError(
                    f"{where}: model '{row.model}', prompt type '{row.prompt_type}': two "
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
    for path, where, raw in _raw_rows(kept, notes):
        if path not in layouts:
            asks = "prompt" in raw or "messages" in raw
            own = ending(path) in _JSON and raw.keys() >= _OWN and asks and not columns
            layouts[path] = None if own else layout_of(path, set(raw), columns)
        row = _completion(where, raw, layouts[path])
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
        yield from ((path, where, row) for where, row in read_rows(path, notes))


def _completion(where: str, raw: Row, layout: Layout | None) -> Completion:
    try:
        return completion_from(raw) if layout is None else completion_of(raw, layout)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
