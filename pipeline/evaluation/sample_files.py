"""Files of samples, read row by row as often as needed, so that texts never fill the memory.

A first reading finds copies by hash and checks the columns; the second yields completions. What is
dropped or assumed on the way is said in `notes`.

Dimension key:  R rows in the order of the files.
"""

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
from pipeline.evaluation.samples import Completion, completion_from
from reward_models.row_files import ending, read_rows
from stages.progress import Report, Step, silent

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
