"""All numbers of one evaluation: cells, paired comparisons, who scored, and what must be said."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.evaluation.samples.comparisons import Comparison, comparisons, corrected
from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.samples.tables import Cell, Quantity, Resampling, Table, cells


@dataclass(frozen=True, slots=True)
class Results:
    """Everything a report or a table needs, and nothing that must be computed again."""

    cells: Sequence[Cell]
    comparisons: Sequence[Comparison]
    scorers: Mapping[str, Mapping[str, Any]]
    notes: Sequence[str] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        """In the order in which they were evaluated."""
        return list(dict.fromkeys(cell.model for cell in self.cells))

    def cell(self, model: str, suite: str, metric: str, filter: str = "all") -> Cell | None:
        """The one cell of that name, or None."""
        for cell in self.cells:
            q = cell.quantity
            if (cell.model, q.suite, q.metric, q.filter) == (model, suite, metric, filter):
                return cell
        return None

    def comparison(
        self, a: str, b: str, suite: str, metric: str, filter: str = "all"
    ) -> Comparison | None:
        """The comparison of a with b of that name, or None."""
        for found in self.comparisons:
            q = found.quantity
            if (found.a, found.b) == (a, b) and (q.suite, q.metric, q.filter) == (
                suite,
                metric,
                filter,
            ):
                return found
        return None


def results_of(
    tables: Sequence[Table],
    pairs: Sequence[tuple[str, str]],
    resampling: Resampling,
    *,
    scorers: Mapping[str, Mapping[str, Any]],
    notes: Sequence[str],
    about: Mapping[str, Any],
) -> Results:
    """Cells and corrected comparisons of all tables."""
    found = [cell for table in tables for cell in cells(table, resampling)]
    compared = [each for table in tables for each in comparisons(table, pairs, resampling)]
    return Results(found, corrected(compared), scorers, list(notes), about)


def scorer_identities(rows: Sequence[Completion]) -> dict[str, Mapping[str, Any]]:
    """Name to version, hash and threshold of every scorer of these rows."""
    return {name: meta for row in rows for name, meta in row.score_meta.items()}


def check_failures(results: Results, max_failed: float) -> None:
    """Raise ValueError if more than this share of the rows of any cell could not be scored."""
    for cell in results.cells:
        total = cell.n_failed + cell.n_samples
        if cell.n_failed > max_failed * total:
            q = cell.quantity
            raise ValueError(
                f"{q.scorer} failed on {cell.n_failed} of {total} rows of {cell.model} "
                f"({q.suite}, {q.metric}, {q.filter}); expected at most {max_failed:.0%}"
            )


_PARTS = ("stderr", "ci95", "n", "n_samples", "n_failed", "interval")


def write_results(results: Results, path: Path) -> None:
    """Write results.json aside and rename it."""
    aside = path.with_name(path.name + ".part")
    text = json.dumps(_to_json(results), ensure_ascii=False, allow_nan=False, indent=1)
    aside.write_text(text + "\n", encoding="utf-8")
    aside.replace(path)


def read_results(path: Path) -> Results:
    """Read what `write_results` wrote; ValueError in one line on anything else."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        quantities = {name: _quantity(name, row) for name, row in raw["quantities"].items()}
        return Results(
            [
                _cell(quantities[f"{suite}/{name}"], model, values)
                for model, suites in raw["results"].items()
                for suite, values in suites.items()
                for name in values
                if f"{suite}/{name}" in quantities
            ],
            [_comparison(quantities, row) for row in raw["comparisons"]],
            raw["scorers"],
            raw["notes"],
            raw["about"],
        )
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: no results of an evaluation ({error!r})") from None


def _key(quantity: Quantity) -> str:
    return f"{quantity.suite}/{quantity.metric},{quantity.filter}"


def _to_json(results: Results) -> dict[str, Any]:
    by_model: dict[str, dict[str, dict[str, Any]]] = {}
    for cell in results.cells:
        q = cell.quantity
        suite = by_model.setdefault(cell.model, {}).setdefault(q.suite, {"alias": q.suite})
        suite[f"{q.metric},{q.filter}"] = _number(cell.value)
        parts = (
            _number(cell.stderr),
            [_number(end) for end in cell.ci95],
            cell.n,
            cell.n_samples,
            cell.n_failed,
            cell.interval,
        )
        for name, part in zip(_PARTS, parts, strict=True):
            suite[f"{q.metric}_{name},{q.filter}"] = part
    every = [cell.quantity for cell in results.cells]
    return {
        "results": by_model,
        "comparisons": [_comparison_row(each) for each in results.comparisons],
        "quantities": {
            _key(q): {"scorer": q.scorer, "better": q.better, "unit": q.unit} for q in every
        },
        "scorers": {name: dict(meta) for name, meta in results.scorers.items()},
        "notes": list(results.notes),
        "about": dict(results.about),
    }


def _comparison_row(c: Comparison) -> dict[str, Any]:
    numbers = {
        "diff": c.diff,
        "change": c.change,
        "p": c.p,
        "p_holm": c.p_holm,
        "minimum_detectable": c.minimum_detectable,
    }
    return {
        "a": c.a,
        "b": c.b,
        "suite": c.quantity.suite,
        "metric": c.quantity.metric,
        "filter": c.quantity.filter,
        **{name: _number(value) for name, value in numbers.items()},
        "ci95": [_number(end) for end in c.ci95],
        "change_ci95": [_number(end) for end in c.change_ci95],
        "test": c.test,
        "n": c.n,
        "verdict": c.verdict,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _ends(values: Sequence[float | None]) -> tuple[float, float]:
    low, high = values
    return _float(low), _float(high)


def _quantity(name: str, row: Mapping[str, Any]) -> Quantity:
    suite, _, rest = name.partition("/")
    metric, _, filter = rest.partition(",")
    return Quantity(suite, metric, filter, row["scorer"], row["better"], row["unit"])


def _cell(q: Quantity, model: str, values: Mapping[str, Any]) -> Cell:
    stderr, ci95, n, n_samples, n_failed, interval = (
        values[f"{q.metric}_{part},{q.filter}"] for part in _PARTS
    )
    value = _float(values[f"{q.metric},{q.filter}"])
    return Cell(q, model, value, _float(stderr), _ends(ci95), n, n_samples, n_failed, interval)


def _comparison(quantities: Mapping[str, Quantity], row: Mapping[str, Any]) -> Comparison:
    return Comparison(
        quantities[f"{row['suite']}/{row['metric']},{row['filter']}"],
        row["a"],
        row["b"],
        diff=_float(row["diff"]),
        ci95=_ends(row["ci95"]),
        change=_float(row["change"]),
        change_ci95=_ends(row["change_ci95"]),
        p=_float(row["p"]),
        test=row["test"],
        n=row["n"],
        minimum_detectable=_float(row["minimum_detectable"]),
        p_holm=_float(row["p_holm"]),
    )
