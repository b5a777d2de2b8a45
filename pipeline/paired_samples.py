"""Scored samples of two runs, compared on the prompts that both answered. Reads files only.

A prompt is the same where its id, text and passage are; a score, where the scorer's version, hash
and threshold are too. What only one run has is left out, and that is said.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation.comparisons import Comparison, comparisons, corrected
from pipeline.evaluation.sample_files import open_samples
from pipeline.evaluation.samples import Completion
from pipeline.evaluation.scored_rows import ScoredRows, where
from pipeline.evaluation.tables import Quantity, Resampling, Table, tabulate

SAMPLES = "samples.jsonl"
_Part = tuple[str, str, str, str]  # suite, prompt type, scorer, metric
_Who = dict[str, dict[str, Mapping[str, Any]]]  # scorer, run: its identity


@dataclass(frozen=True, slots=True)
class Paired:
    """Differences, second run minus first, and what was left out on the way."""

    found: Sequence[Comparison]
    notes: Sequence[str]


def paired(first: Path, second: Path, resampling: Resampling) -> Paired:
    """Models of the same name, or all of one run with all of the other if no name is in both."""
    number: dict[str, int] = {}
    rows = ScoredRows(number)
    notes: list[str] = []
    who: _Who = defaultdict(dict)
    models = [
        _read(path, run, _Reading(rows, number, who, notes))
        for path, run in ((first, "A"), (second, "B"))
    ]
    same = [name for name in models[0] if name in models[1]]
    pairs = [(a, a) for a in same] or [(a, b) for a in models[0] for b in models[1]]
    parts = _shared_parts(rows, who, notes)
    found: list[Comparison] = []
    for a, b in pairs:
        for part in parts:
            table = _table(rows, part, (f"A:{a}", f"B:{b}"))
            found += comparisons(table, [(f"B:{b}", f"A:{a}")], resampling)
            notes += _lost(table)
    return Paired(corrected(found), list(dict.fromkeys(notes)))


@dataclass(frozen=True, slots=True)
class _Reading:
    """What both files are read into."""

    rows: ScoredRows
    number: dict[str, int]
    who: _Who
    notes: list[str]


def _read(path: Path, run: str, into: _Reading) -> list[str]:
    """Add the file's rows under the run's name; return its models."""
    files = open_samples([path], {})
    for row in files.rows():
        turns = map(str, row.history)
        asked = "\0".join((row.id, row.prompt, row.context or "", *turns))
        prompt = hashlib.sha256(asked.encode()).hexdigest()[:32]
        into.number.setdefault(prompt, len(into.number))
        into.rows.add(replace(row, id=prompt, model=f"{run}:{row.model}"))
        for scorer in row.scores:
            into.who[scorer][run] = row.score_meta.get(scorer, {})
    into.notes.extend(f"{path}: {note}" for note in files.notes)
    return list(files.models)


def _shared_parts(rows: Sequence[Completion], who: _Who, notes: list[str]) -> list[_Part]:
    """What was scored in both runs, by the same scorer."""
    seen: dict[_Part, set[str]] = {}
    for row in rows:
        for scorer, scores in row.scores.items():
            for metric in scores or ():
                seen.setdefault((row.suite, row.prompt_type, scorer, metric), set()).add(
                    row.model[0]
                )
    other = {name for name, runs in who.items() if len(runs) == 2 and runs["A"] != runs["B"]}
    notes += [f"{name} differs between the runs (version, hash or threshold); not compared"
              for name in sorted(other)]  # fmt: skip
    return [part for part, runs in seen.items() if len(runs) == 2 and part[2] not in other]


def _table(rows: Sequence[Completion], part: _Part, models: tuple[str, str]) -> Table:
    suite, prompt_type, scorer, metric = part
    return tabulate(
        where(rows, partial(_belongs, part, models)),
        Quantity(suite, metric, prompt_type, scorer),
        lambda row: row.score(scorer, metric),
        models,
    )


def _belongs(part: _Part, models: tuple[str, str], row: Completion) -> bool:
    mine = (row.suite, row.prompt_type) == part[:2] and row.model in models
    return mine and row.has(part[2], part[3])


def _lost(table: Table) -> Iterator[str]:
    """What the comparison leaves out."""
    has_NM = np.isfinite(table.value_NM)
    common = int(has_NM.all(axis=1).sum())
    q, total = table.quantity, len(has_NM)
    if common < total:
        lacking = ", ".join(
            f"{model} lacks {total - has}"
            for model, has in zip(table.models, has_NM.sum(axis=0).tolist(), strict=True)
            if has < total
        )
        yield (
            f"{q.suite}, prompt type '{q.filter}', {q.scorer}: of {total} prompts {lacking}; "
            f"compared on the {common} in common"
        )
    if failed := sum(table.failed_M):
        yield f"{q.suite}, {q.metric}, '{q.filter}': {q.scorer} failed on {failed} rows"
