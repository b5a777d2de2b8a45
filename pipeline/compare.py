"""The results of several runs in one table: a row a measure, a column a run's policy.

Below it, paired differences of each further run from the first, where their samples share prompts.
"""

import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.evaluation.results import Results
from pipeline.evaluation.results_file import read_results
from pipeline.evaluation.tables import Resampling
from pipeline.paired_samples import SAMPLES, paired

RESULTS = "evaluate/results.json"


def comparison_table(runs: Sequence[Path]) -> str:
    """The table as text; ValueError naming a run that has no results."""
    found = {str(place): read_results(_results_file(place)) for place in runs}
    columns = [(place, model) for place in found for model in found[place].models]
    table = Table("measure", *(f"{place}\n{model}" for place, model in columns))
    for key in _measures(list(found.values())):
        table.add_row(_name(key), *(_value(found[place], model, key) for place, model in columns))
    further = [_paired_text(runs[0], run) for run in runs[1:]]
    return _printed(table, 40 + 26 * len(columns)) + "".join(further)


def _printed(table: Table, width: int) -> str:
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
    table = Table(*headings, title="paired by prompt")
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
