"""Every table of the page as Markdown and as CSV, for papers and for spreadsheets.

tables/summary.{md,csv}   tables/numbers-SUITE.{md,csv}   tables/differences-SUITE.{md,csv}
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.report.inputs import ReportInputs
from pipeline.report.summary import summary_lines
from pipeline.report.words import cell_text, difference_text, filter_title, named, p_text

Rows = Sequence[Sequence[object]]
_CELL = ("model", "measure", "part", "value", "low", "high", "stderr", "interval", "n", "samples",
         "failed", "unit", "scorer")  # fmt: skip
_DIFFERENCE = ("a", "b", "measure", "part", "difference", "low", "high", "change", "p", "p_holm",
               "test", "n", "minimum_detectable", "verdict")  # fmt: skip


def write_tables(inputs: ReportInputs, folder: Path) -> None:
    """Write them all; a table without rows is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, heads, rows, said in _tables(inputs):
        if rows:
            (folder / f"{name}.csv").write_text(_csv(heads, rows), encoding="utf-8")
            (folder / f"{name}.md").write_text(_markdown(*said), encoding="utf-8")


def _tables(
    inputs: ReportInputs,
) -> Iterator[tuple[str, Sequence[str], Rows, tuple[Sequence[str], Rows]]]:
    """Name, heads and rows in full precision, and heads and rows as they are printed."""
    models = inputs.results.models
    lines = summary_lines(inputs.results)
    printed = [
        [line.title, *("" if cell is None else cell_text(cell) for cell in line.cells)]
        for line in lines
    ]
    exact = [
        [line.title, *("" if cell is None else cell.value for cell in line.cells)] for line in lines
    ]
    yield "summary", ["measure", *models], exact, (["measure", *models], printed)
    for suite in dict.fromkeys(cell.quantity.suite for cell in inputs.results.cells):
        yield f"numbers-{_file(suite)}", _CELL, _cells(inputs, suite), _printed_cells(inputs, suite)
        yield (
            f"differences-{_file(suite)}",
            _DIFFERENCE,
            _differences(inputs, suite),
            _printed_differences(inputs, suite),
        )


def _cells(inputs: ReportInputs, suite: str) -> Rows:
    return [
        [
            c.model, c.quantity.metric, c.quantity.filter, c.value, *c.ci95, c.stderr, c.interval,
            c.n, c.n_samples, c.n_failed, c.quantity.unit, c.quantity.scorer,
        ]
        for c in inputs.results.cells
        if c.quantity.suite == suite
    ]  # fmt: skip


def _printed_cells(inputs: ReportInputs, suite: str) -> tuple[Sequence[str], Rows]:
    """A row a measure and part, a column a model."""
    mine = [c for c in inputs.results.cells if c.quantity.suite == suite]
    models = list(dict.fromkeys(c.model for c in mine))
    keys = dict.fromkeys((c.quantity.metric, c.quantity.filter) for c in mine)
    by_key = {(c.model, c.quantity.metric, c.quantity.filter): c for c in mine}
    rows = [
        [
            f"{named(metric).title}, {filter_title(part)}",
            *(
                cell_text(found) if (found := by_key.get((model, metric, part))) else ""
                for model in models
            ),
        ]
        for metric, part in keys
    ]  # fmt: skip
    return ["measure", *models], rows


def _differences(inputs: ReportInputs, suite: str) -> Rows:
    return [
        [
            c.a, c.b, c.quantity.metric, c.quantity.filter, c.diff, *c.ci95, c.change, c.p,
            c.p_holm, c.test, c.n, c.minimum_detectable, c.verdict,
        ]
        for c in inputs.results.comparisons
        if c.quantity.suite == suite
    ]  # fmt: skip


def _printed_differences(inputs: ReportInputs, suite: str) -> tuple[Sequence[str], Rows]:
    rows = [
        [
            f"{c.a} - {c.b}",
            f"{named(c.quantity.metric).title}, {filter_title(c.quantity.filter)}",
            difference_text(c), p_text(c.p_holm), c.n, c.verdict,
        ]
        for c in inputs.results.comparisons
        if c.quantity.suite == suite
    ]  # fmt: skip
    return ["", "measure", "difference (95 %)", "Holm's p", "n", "verdict"], rows


def _csv(heads: Sequence[str], rows: Rows) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([heads, *rows])
    return out.getvalue()


def _markdown(heads: Sequence[str], rows: Rows) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(_escaped(cell) for cell in line)} |\n" for line in lines)


def _escaped(cell: object) -> str:
    return str(cell).replace("|", "\\|").replace("\n", " ")


def _file(suite: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", suite).strip("-").lower()
