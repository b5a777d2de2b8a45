"""The results of several runs in one table: a row a measure, a column a run's policy.

Below it, paired differences of each further run from the first, where their samples share prompts.
"""

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from pipeline.evaluation.external.sample_files import open_samples
from pipeline.evaluation.samples.comparisons import Comparison, comparisons, corrected
from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.samples.results import Results, read_results
from pipeline.evaluation.samples.scored_rows import ScoredRows, where
from pipeline.evaluation.samples.tables import Quantity, Resampling, Table, tabulate

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


RESULTS = "evaluate/results.json"


def comparison_table(runs: Sequence[Path]) -> str:
    """The table as text; ValueError naming a run that has no results."""
    found = {str(place): read_results(_results_file(place)) for place in runs}
    columns = [(place, model) for place in found for model in found[place].models]
    table = RichTable("measure", *(f"{place}\n{model}" for place, model in columns))
    for key in _measures(list(found.values())):
        table.add_row(_name(key), *(_value(found[place], model, key) for place, model in columns))
    further = [_paired_text(runs[0], run) for run in runs[1:]]
    return _printed(table, 40 + 26 * len(columns)) + "".join(further)


def _printed(table: RichTable, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


def _paired_text(first: Path, second: Path) -> str:
    """The second run minus the first, prompt by prompt, or that there is nothing to pair."""
    head = f"\nA = {first}, B = {second}"
    ours, theirs = (_results_file(run).with_name(SAMPLES) for run in (first, second))
    for path in (ours, theirs):
        if not path.is_file():
            return f"{head}: nothing in common to pair; {path} is not there\n"
    result = paired(ours, theirs, Resampling())
    notes = "".join(f"Note: {note}.\n" for note in result.notes)
    if not result.found:
        return f"{head}: nothing in common to pair, no prompt has the same score in both\n{notes}"
    headings = ("measure", "models", "B - A, 95 %", "p", "p (Holm)", "n", "verdict")
    table = RichTable(*headings, title="paired by prompt")
    for each in result.found:
        q, (low, high) = each.quantity, each.ci95
        table.add_row(
            f"{_name((q.suite, q.metric, q.filter))} ({q.scorer})", f"{each.a} - {each.b}",
            f"{each.diff:+.3f} [{low:+.3f}, {high:+.3f}]", f"{each.p:.2g}", f"{each.p_holm:.2g}",
            str(each.n), each.verdict,
        )  # fmt: skip
    return f"{head}\n{_printed(table, 180)}{notes}"


def _results_file(place: Path) -> Path:
    for path in (place / RESULTS, place / "results.json", place):
        if path.is_file():
            return path
    raise ValueError(f"{place}: no results there; expected a run whose evaluation is finished")


def _measures(found: Sequence[Results]) -> list[tuple[str, str, str]]:
    """Every suite, metric and filter, in the order in which they first appear."""
    quantities = [cell.quantity for results in found for cell in results.cells]
    return list(dict.fromkeys((q.suite, q.metric, q.filter) for q in quantities))


def _name(key: tuple[str, str, str]) -> str:
    suite, metric, selected = key
    return f"{suite} · {metric}" if selected == "all" else f"{suite} · {metric} · {selected}"


def _value(results: Results, model: str, key: tuple[str, str, str]) -> str:
    cell = results.cell(model, *key)
    if cell is None:
        return "-"
    low, high = cell.ci95
    return f"{cell.value:.3f} [{low:.3f}, {high:.3f}] n {cell.n}"
