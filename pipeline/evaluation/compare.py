"""The results of several runs in one table: a row a measure, a column a run's policy.

Below it, paired differences of each further run from the first, where their samples share prompts.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from pipeline.evaluation.external.sample_files import open_samples
from pipeline.evaluation.samples.records import ALL, Completion, ScoredRows
from pipeline.evaluation.samples.results import read_results
from pipeline.evaluation.samples.tables import (
    Cell,
    Comparison,
    Quantity,
    Resampling,
    Table,
    comparisons,
    corrected,
    tabulate,
)

SAMPLES, RESULTS = "samples.jsonl", "evaluate/results.json"
Meta = Mapping[str, Any]


def paired(first: Path, second: Path, resampling: Resampling) -> tuple[list[Comparison], list[str]]:
    """Return differences, second run minus first, and notes on what was left out.

    Models of the same name are compared, or all of both runs if no name is in both.
    """
    notes: list[str] = []
    meta: dict[str, dict[str, Meta]] = {"A": {}, "B": {}}
    rows = ScoredRows.of(
        (
            row
            for path, run in ((first, "A"), (second, "B"))
            for row in _rows(path, run, meta[run], notes)
        ),
        has_texts=lambda _: False,
    )
    models = {
        run: [n[2:] for n in dict.fromkeys(rows.fields["model"]) if n[0] == run] for run in meta
    }
    same = [name for name in models["A"] if name in models["B"]]
    pairs = [(a, a) for a in same] or [(a, b) for a in models["A"] for b in models["B"]]
    differing = {
        name for name in meta["A"].keys() & meta["B"] if meta["A"][name] != meta["B"][name]
    }
    notes += [
        f"{name} differs between the runs (version, hash or threshold); not compared"
        for name in sorted(differing)
    ]
    parts = [part for part in _parts(rows) if part[0].scorer not in differing]
    uncorrected: list[Comparison] = []
    for a, b in pairs:
        for quantity, judged in parts:
            names = (f"A:{a}", f"B:{b}")
            of_pair = judged.where(judged.fields["model"].isin(names))
            score_S = of_pair.score(quantity.scorer, quantity.metric)
            table = tabulate(of_pair, quantity, score_S, names)
            uncorrected += comparisons(table, [(names[1], names[0])], resampling)
            notes += _left_out(table)
    return corrected(uncorrected), list(dict.fromkeys(notes))


def _parts(rows: ScoredRows) -> Iterator[tuple[Quantity, ScoredRows]]:
    """Every score that both runs have, with its rows."""
    for suite, of_suite in rows.by("suite"):
        for kind, of_kind in of_suite.by("prompt_type"):
            for scorer, metric in of_kind.score_names:
                judged = of_kind.judged(scorer, metric)
                if metric != ALL and len({model[0] for model in judged.fields["model"]}) == 2:
                    yield Quantity(suite, metric, kind, scorer), judged


def _rows(path: Path, run: str, meta: dict[str, Meta], notes: list[str]) -> Iterator[Completion]:
    """The file's rows under the run's name, with an id by the content of the prompt."""
    files = open_samples([path], {})
    for row in files.rows():
        content = "\0".join((row.id, row.prompt, row.context or "", *map(str, row.history)))
        prompt = hashlib.sha256(content.encode()).hexdigest()[:32]
        for scorer in row.scores:
            meta[scorer] = row.score_meta.get(scorer, {})
        yield replace(row, id=prompt, model=f"{run}:{row.model}")
    notes.extend(f"{path}: {note}" for note in files.notes)


def _left_out(table: Table) -> Iterator[str]:
    """The prompts and rows that a comparison leaves out."""
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


def comparison_table(runs: Sequence[Path]) -> str:
    """Return the table as text; raise ValueError naming a run that has no results."""
    results = {str(run): read_results(_results_file(run)) for run in runs}
    columns = [(run, model) for run in results for model in results[run].models]
    table = RichTable("measure", *(f"{run}\n{model}" for run, model in columns))
    quantities = [cell.quantity for one in results.values() for cell in one.cells]
    for key in dict.fromkeys(quantity.key for quantity in quantities):
        table.add_row(
            _name(key), *(_value(results[run].cell(model, *key)) for run, model in columns)
        )
    further = [_paired_text(runs[0], run) for run in runs[1:]]
    return _printed(table, 40 + 26 * len(columns)) + "".join(further)


def _printed(table: RichTable, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


def _paired_text(first: Path, second: Path) -> str:
    """The second run minus the first, prompt by prompt, or that there is nothing to pair."""
    head = f"\nA = {first}, B = {second}"
    files = [_results_file(run).with_name(SAMPLES) for run in (first, second)]
    for path in files:
        if not path.is_file():
            return f"{head}: nothing in common to pair; {path} is not there\n"
    differences, left_out = paired(files[0], files[1], Resampling())
    notes = "".join(f"Note: {note}.\n" for note in left_out)
    if not differences:
        return f"{head}: nothing in common to pair, no prompt has the same score in both\n{notes}"
    headings = ("measure", "models", "B - A, 95 %", "p", "p (Holm)", "n", "verdict")
    table = RichTable(*headings, title="paired by prompt")
    for each in differences:
        q, (low, high) = each.quantity, each.ci95
        table.add_row(
            f"{_name(q.key)} ({q.scorer})",
            f"{each.a} - {each.b}",
            f"{each.diff:+.3f} [{low:+.3f}, {high:+.3f}]",
            f"{each.p:.2g}",
            f"{each.p_holm:.2g}",
            str(each.n),
            each.verdict,
        )
    return f"{head}\n{_printed(table, 180)}{notes}"


def _results_file(run: Path) -> Path:
    for path in (run / RESULTS, run / "results.json", run):
        if path.is_file():
            return path
    raise ValueError(f"{run}: no results there; expected a run whose evaluation is finished")


def _name(key: tuple[str, str, str]) -> str:
    return " · ".join(key[:2] if key[2] == "all" else key)


def _value(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return f"{cell.value:.3f} [{cell.ci95.low:.3f}, {cell.ci95.high:.3f}] n {cell.n}"
