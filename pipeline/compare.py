"""The results of several runs in one table: a row a measure, a column a run's policy."""

import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.evaluation.results import Results
from pipeline.evaluation.results_file import read_results

RESULTS = "evaluate/results.json"


def comparison_table(runs: Sequence[Path]) -> str:
    """The table as text; ValueError naming a run that has no results."""
    found = {str(place): read_results(_results_file(place)) for place in runs}
    columns = [(place, model) for place in found for model in found[place].models]
    table = Table("measure", *(f"{place}\n{model}" for place, model in columns))
    for key in _measures(list(found.values())):
        table.add_row(_name(key), *(_value(found[place], model, key) for place, model in columns))
    out = io.StringIO()
    Console(file=out, width=40 + 26 * len(columns)).print(table)
    return out.getvalue()


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
