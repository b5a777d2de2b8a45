"""Other people's samples: any CSV, TSV or JSONL, read through a column map into completions.

A map `{"model": "model_type", "completion": "sample", "prompt": "context"}` names the file's column
for each field. A field whose own name is a column needs no entry. Any other name in the map is a
score already given in the file, e.g. `{"toxicity": "perspective"}`; so are columns that are called
toxicity, true or info and are not used otherwise. Nothing that is left out goes unsaid.
"""

import csv
import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.evaluation.samples import Completion
from reward_models.records import read_jsonl

FILE_SCORER = "given in the file"
FIELDS = ("id", "model", "prompt", "completion", "prompt_type", "k", "context", "category")
KNOWN_SCORES = ("toxicity", "true", "info")
_ABSENT = {"", "na", "n/a", "nan", "none", "null"}  # a score that is not there; never a text
_INDEX = {"", "index", "id", "Unnamed: 0"}  # columns that number the rows
_UNNUMBERED = -1

Raw = tuple[Path, int, dict[str, Any]]  # file, line, column to value


@dataclass(frozen=True, slots=True)
class Loaded:
    """The completions and, in sentences, what was dropped or assumed on the way."""

    rows: list[Completion]
    notes: list[str]


def load_samples(paths: Sequence[Path], columns: Mapping[str, str]) -> Loaded:
    """Read and join the files. Raises ValueError `file:line: ...` on what cannot be read."""
    notes: list[str] = []
    seen: dict[str, Path] = {}
    raw: list[Raw] = []
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest in seen:
            notes.append(f"{path} has the same content as {seen[digest]}; it is counted once")
            continue
        seen[digest] = path
        before = len(raw)
        raw += _raw_rows(path, notes)
        if len(raw) == before:
            raise ValueError(f"{path}: no rows in it")
    rows = list(_completions(_without_copies(raw, notes), columns))
    return Loaded(_numbered(rows, notes), notes)


def _raw_rows(path: Path, notes: list[str]) -> Iterator[Raw]:
    """Rows with every CSV value as the text that stands in the file, quoted newlines included."""
    if path.suffix in {".jsonl", ".json", ".ndjson"}:
        yield from ((path, line, row) for line, row in read_jsonl(path))
        return
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        header = next(reader, [])
        if len(set(header)) != len(header):
            raise ValueError(f"{path}:1: a column name occurs twice in {header}")
        for values in reader:
            if values == header:
                notes.append(f"{path}:{reader.line_num}: the header again; skipped")
            elif len(values) == len(header):
                yield path, reader.line_num, dict(zip(header, values, strict=True))
            elif values:
                raise ValueError(
                    f"{path}:{reader.line_num}: {len(values)} values, expected {len(header)}"
                )


def _without_copies(raw: list[Raw], notes: list[str]) -> list[Raw]:
    """Drop rows that can only be copies: equal in every column, and numbered or all copied alike.

    Rows without a number may be samples that happen to agree; these stay, unless the number of
    times each row occurs has a common divisor, as in a file that was appended to itself.
    """
    keys = [json.dumps(row, sort_keys=True) for _, _, row in raw]
    count = Counter(keys)
    if not any(not _INDEX.isdisjoint(row) for _, _, row in raw):
        divisor = math.gcd(*count.values())
        kept_of = {key: times // divisor for key, times in count.items()}
    else:
        kept_of = dict.fromkeys(count, 1)
    kept, found = [], Counter[str]()
    for item, key in zip(raw, keys, strict=True):
        found[key] += 1
        if found[key] <= kept_of[key]:
            kept.append(item)
    if dropped := len(raw) - len(kept):
        notes.append(f"{dropped} of {len(raw)} rows repeat another row exactly; dropped")
    return kept


def _completions(raw: Sequence[Raw], columns: Mapping[str, str]) -> Iterator[Completion]:
    layouts: dict[Path, tuple[dict[str, str], dict[str, str]]] = {}
    for path, line, row in raw:
        if path not in layouts:
            layouts[path] = _layout(path, set(row), columns)
        try:
            yield _completion(row, *layouts[path])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}:{line}: {error}") from None


def _layout(
    path: Path, names: set[str], columns: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Which column holds each field and each given score."""
    for field, column in columns.items():
        if column not in names:
            raise ValueError(f"{path}: no column '{column}' for {field}; found {sorted(names)}")
    free = names - set(columns.values())
    fields = {field: columns.get(field, field) for field in FIELDS if field in {*columns, *free}}
    for field in ("model", "prompt", "completion"):
        if field not in fields:
            raise ValueError(
                f"{path}: which column is the {field}? Say {field}=COLUMN; found {sorted(names)}"
            )
    scores = {name: column for name, column in columns.items() if name not in FIELDS}
    return fields, scores | {name: name for name in KNOWN_SCORES if name in free}


def _completion(
    row: Mapping[str, Any], fields: Mapping[str, str], scores: Mapping[str, str]
) -> Completion:
    values: dict[str, Any] = {field: row.get(column) for field, column in fields.items()}
    context = values.get("context") or None
    asked = f"{context or ''}\n\n{values['prompt']}"
    given = {name: _number(name, row.get(column)) for name, column in scores.items()}
    return Completion(
        id=str(values.get("id") or hashlib.sha256(asked.encode()).hexdigest()[:16]),
        model=values["model"],
        prompt=values["prompt"],
        completion=values["completion"],
        prompt_type=values.get("prompt_type") or "none",
        k=_UNNUMBERED if values.get("k") in (None, "") else int(values["k"]),
        context=context,
        category=values.get("category") or None,
        scores={FILE_SCORER: given} if given else {},
    )


def _number(name: str, value: object) -> float | None:
    text = str(value).strip().lower()
    if value is None or text in _ABSENT:
        return None
    if text in {"true", "false"}:
        return float(text == "true")
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"score '{name}' is {value!r}, expected a number") from None


def _numbered(rows: Sequence[Completion], notes: list[str]) -> list[Completion]:
    """Rows without a k get one: samples of one model to one prompt count from 0 as they stand."""
    samples: dict[tuple[str, str, str], dict[int, Completion]] = defaultdict(dict)
    for row in rows:
        taken = samples[row.model, row.prompt_type, row.id]
        k = len(taken) if row.k == _UNNUMBERED else row.k
        if k in taken:
            raise ValueError(
                f"model '{row.model}', prompt type '{row.prompt_type}': two rows are sample {k} "
                f"of prompt '{row.prompt[:40]}'"
            )
        taken[k] = replace(row, k=k)
    most = max(len(taken) for taken in samples.values())
    if most > 1:
        notes.append(f"up to {most} completions of one model to one prompt; the prompt is the unit")
    return [row for taken in samples.values() for row in taken.values()]
