"""Tables: on the page, and as Markdown and CSV beside it, for papers and for spreadsheets.

tables/summary.{md,csv}   tables/numbers-SUITE.{md,csv}   tables/differences-SUITE.{md,csv}
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.evaluation.samples.comparisons import Comparison
from pipeline.evaluation.samples.tables import Cell, Quantity
from pipeline.report.inputs import ReportInputs
from pipeline.report.layout import Entry, Notes, Row, Section, Table, section
from pipeline.report.terminal import summary_lines, verdict_text
from pipeline.report.words import (
    MINUS,
    MISSING,
    capital,
    cell_text,
    difference_text,
    filter_title,
    interval,
    named,
    number,
    p_text,
    suite_title,
)

TAX = ("tax", "pretraining")
Rows = Sequence[Sequence[object]]  # the first has the heads
Records = Sequence[Mapping[str, object]]


def summary(inputs: ReportInputs) -> Section | None:
    """Return the table that a terminal ends with."""
    lines = summary_lines(inputs.results)
    compared = any(line.against_baseline for line in lines)
    rows: list[Row] = [
        [
            line.title,
            *(_value(cell) for cell in line.cells),
            *([Entry(verdict_text(line.against_baseline), role="verdict")] if compared else []),
        ]
        for line in lines
    ]
    against = [f"{inputs.focus} against {inputs.baseline}"] if compared else []
    about = (
        "Estimates with 95 % intervals. A change is named only if its interval leaves out zero and "
        "Holm's p is below .05."
    )
    table = Table(
        heads=["measure", *inputs.results.models, *against],
        rows=rows,
        label="Summary table",
        style="summary compared" if compared else "summary",
    )
    return section("summary", "In short", about, table, link="In short")


def tax(inputs: ReportInputs) -> Table | None:
    """Return what alignment cost: each policy's value, and its change against the first policy."""
    cells = [cell.quantity for cell in inputs.results.cells if cell.quantity.suite in TAX]
    rows = [_tax_row(quantity, inputs) for quantity in dict.fromkeys(cells)]
    heads = ["benchmark", *inputs.results.models]
    return Table(heads, rows, label="Alignment tax", style="summary tax") if rows else None


def _tax_row(quantity: Quantity, inputs: ReportInputs) -> Row:
    key = (quantity.suite, quantity.metric, quantity.filter)
    models, results = inputs.results.models, inputs.results
    title = capital(f"{filter_title(quantity.filter)}, {named(quantity.metric).title}")
    better = {"higher": "more is better", "lower": "less is better"}.get(quantity.better or "", "")
    return [
        Entry(title, better),
        *(
            _value(results.cell(model, *key), results.comparison(model, models[0], *key))
            for model in models
        ),
    ]


def _value(cell: Cell | None, change: Comparison | None = None) -> Entry:
    """Return an estimate above its interval, and below them its change."""
    if cell is None:
        return Entry(MISSING)
    name = named(cell.quantity.metric)
    value, ends = number(cell.value, name), interval(*cell.ci95, name)
    if change is None:
        return Entry(value, ends)
    sign = "+" if change.diff > 0 else ""
    text = f"{sign}{number(change.diff, name, unit=False)} ({interval(*change.ci95, name)})"
    return Entry(value, ends, text, significant=change.verdict != "no difference shown")


def differences(inputs: ReportInputs) -> Section | None:
    """Return every paired comparison, by suite, folded."""
    heads = ("", "measure", "part", "difference", "p", "Holm's p", "n", "detectable", "verdict")
    tables = []
    for suite in _suites(inputs):
        rows: list[Row] = [
            [
                f"{c.a} {MINUS} {c.b}",
                named(c.quantity.metric).title,
                filter_title(c.quantity.filter),
                difference_text(c),
                p_text(c.p),
                p_text(c.p_holm),
                str(c.n),
                number(c.minimum_detectable, named(c.quantity.metric)),
                Entry(c.verdict, role="verdict"),
            ]
            for c in inputs.results.comparisons
            if c.quantity.suite == suite
        ]
        tables.append(_folded(suite, heads, rows))
    about = (
        "Paired by prompt: intervals from resampled prompts, p by sign flips (or McNemar's exact "
        "test for rates), corrected after Holm within a table. Detectable is the difference that "
        "so many prompts show with 80 % power: where none is shown, a smaller one may hide."
    )
    return section("differences", "All differences", about, *tables, link="Differences")


def numbers(inputs: ReportInputs) -> Section | None:
    """Return every cell, by suite, folded."""
    heads = ("", "measure", "part", "estimate (95 %)", "n", "failed", "scored by")
    tables = []
    for suite in _suites(inputs):
        rows: list[Row] = [
            [
                c.model,
                named(c.quantity.metric).title,
                filter_title(c.quantity.filter),
                cell_text(c),
                str(c.n),
                str(c.n_failed),
                c.quantity.scorer,
            ]
            for c in inputs.results.cells
            if c.quantity.suite == suite
        ]
        tables.append(_folded(suite, heads, rows))
    return section("numbers", "All numbers", "", *tables, link="Numbers")


def _folded(suite: str, heads: Sequence[str], rows: Sequence[Row]) -> Table | None:
    return Table(heads, rows, label=suite_title(suite), folded=True) if rows else None


def provenance(inputs: ReportInputs) -> Section | None:
    """Return who scored, with version and hash, what each stage took, and what must be said."""
    scorers: list[Row] = [
        [
            name,
            str(meta["version"]),
            Entry(str(meta["sha256"])[:12], role="code"),
            "none" if meta["threshold"] is None else str(meta["threshold"]),
        ]
        for name, meta in inputs.results.scorers.items()
    ]
    stages: list[Row] = [
        [
            stage,
            f"{m.wall_s:.0f} s",
            f"{m.peak_rss_bytes / 1e6:.0f} MB",
            str(m.seed),
            ", ".join(m.labels) or "no labels",
            m.code_version,
        ]
        for stage, m in inputs.manifests.items()
    ]
    notes = [*inputs.results.notes, *map(str, inputs.overlaps)]
    stage_heads = ("stage", "time", "peak memory", "seed", "labels behind it", "code")
    return section(
        "provenance",
        "How this was measured",
        "",
        Notes([capital(note).rstrip(".") + "." for note in notes]) if notes else None,
        Table(("scorer", "version", "sha256", "threshold"), scorers, "scorers")
        if scorers
        else None,
        Table(stage_heads, stages, "stages") if stages else None,
        link="Method",
    )


def write_tables(inputs: ReportInputs, folder: Path) -> None:
    """Write every table of numbers as Markdown and CSV; one without rows is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, records, printed in _files(inputs):
        if records:
            with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(records)
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
    for suite in _suites(inputs):
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
        for c in inputs.results.cells
        if c.quantity.suite == suite
    ]


def _printed_cells(inputs: ReportInputs, suite: str) -> Rows:
    """Return a row a measure and part, a column a model."""
    cells = [c for c in inputs.results.cells if c.quantity.suite == suite]
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
    return "".join(f"| {' | '.join(map(_escaped, line))} |\n" for line in lines)


def _escaped(cell: object) -> str:
    return str(cell).replace("|", "\\|").replace("\n", " ")


def _suites(inputs: ReportInputs) -> list[str]:
    return list(dict.fromkeys(cell.quantity.suite for cell in inputs.results.cells))
