"""Every table of the page as Markdown and CSV, for papers and for spreadsheets.

tables/summary.{md,csv}   tables/numbers-SUITE.{md,csv}   tables/differences-SUITE.{md,csv}
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from pipeline.report.inputs import ReportInputs
from pipeline.report.terminal import summary_lines
from pipeline.report.words import cell_text, difference_text, filter_title, named, p_text

Rows = Sequence[Sequence[object]]  # the first has the heads
Records = Sequence[Mapping[str, object]]


def write_tables(inputs: ReportInputs, folder: Path) -> None:
    """Write every table of numbers as Markdown and CSV; one without rows is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, records, printed in _files(inputs):
        if records:
            pd.DataFrame(records).to_csv(folder / f"{name}.csv", index=False, na_rep="nan")
            (folder / f"{name}.md").write_text(_markdown(printed), encoding="utf-8")


def _files(inputs: ReportInputs) -> Iterator[tuple[str, Records, Rows]]:
    """Yield each table's name, its rows in full precision, and as they are printed."""
    models, lines = inputs.results.models, summary_lines(inputs.results)
    exact: Records = [
        {"measure": line.title}
        | {model: c.value if c else "" for model, c in zip(models, line.cells, strict=True)}
        for line in lines
    ]
    printed = [[line.title, *(cell_text(c) if c else "" for c in line.cells)] for line in lines]
    yield "summary", exact, [["measure", *models], *printed]
    for suite in inputs.suites:
        name = re.sub(r"[^A-Za-z0-9]+", "-", suite).strip("-").lower()
        yield f"numbers-{name}", _exact_cells(inputs, suite), _printed_cells(inputs, suite)
        printed_differences = _printed_differences(inputs, suite)
        yield f"differences-{name}", _exact_differences(inputs, suite), printed_differences


def _exact_cells(inputs: ReportInputs, suite: str) -> Records:
    return [
        {
            "model": c.model,
            "measure": c.quantity.metric,
            "part": c.quantity.filter,
            "value": c.value,
            "low": c.ci95[0],
            "high": c.ci95[1],
            "stderr": c.stderr,
            "interval": c.interval,
            "n": c.n,
            "samples": c.n_samples,
            "failed": c.n_failed,
            "unit": c.quantity.unit,
            "scorer": c.quantity.scorer,
        }
        for c in inputs.cells(suite)
    ]


def _printed_cells(inputs: ReportInputs, suite: str) -> Rows:
    """Return a row a measure and part, a column a model."""
    cells = inputs.cells(suite)
    models = list(dict.fromkeys(c.model for c in cells))
    by_key = {(c.quantity.metric, c.quantity.filter, c.model): cell_text(c) for c in cells}
    rows = [
        [
            f"{named(metric).title}, {filter_title(part)}",
            *(by_key.get((metric, part, model), "") for model in models),
        ]
        for metric, part in dict.fromkeys((c.quantity.metric, c.quantity.filter) for c in cells)
    ]
    return [["measure", *models], *rows]


def _exact_differences(inputs: ReportInputs, suite: str) -> Records:
    return [
        {
            "a": c.a,
            "b": c.b,
            "measure": c.quantity.metric,
            "part": c.quantity.filter,
            "difference": c.diff,
            "low": c.ci95[0],
            "high": c.ci95[1],
            "change": c.change,
            "p": c.p,
            "p_holm": c.p_holm,
            "test": c.test,
            "n": c.n,
            "minimum_detectable": c.minimum_detectable,
            "verdict": c.verdict,
        }
        for c in inputs.results.comparisons
        if c.quantity.suite == suite
    ]


def _printed_differences(inputs: ReportInputs, suite: str) -> Rows:
    rows = [
        (
            f"{c.a} - {c.b}",
            f"{named(c.quantity.metric).title}, {filter_title(c.quantity.filter)}",
            difference_text(c),
            p_text(c.p_holm),
            c.n,
            c.verdict,
        )
        for c in inputs.results.comparisons
        if c.quantity.suite == suite
    ]
    return [("", "measure", "difference (95 %)", "Holm's p", "n", "verdict"), *rows]


def _markdown(rows: Rows) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    escaped = ([str(c).replace("|", "\\|").replace("\n", " ") for c in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)
