"""All numbers of one evaluation: cells, paired comparisons, scorers and notes, as results.json.

`results[model][suite]["metric,filter"]` and `"metric_stderr,filter"` are lm-eval's shape.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pipeline.evaluation.samples.tables import (
    Cell,
    Comparison,
    Quantity,
    Resampling,
    Table,
    cells,
    comparisons,
    corrected,
)
from reward_models.atomic_files import write_json
from reward_models.intervals import Interval


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
        """The models in the order in which they were evaluated."""
        return list(dict.fromkeys(cell.model for cell in self.cells))

    def cell(self, model: str, suite: str, metric: str, filter: str = "all") -> Cell | None:
        """The one cell of that name, or None."""
        key = (suite, metric, filter)
        return next((c for c in self.cells if c.model == model and c.quantity.key == key), None)

    def comparison(
        self, a: str, b: str, suite: str, metric: str, filter: str = "all"
    ) -> Comparison | None:
        """The comparison of a with b of that name, or None."""
        key = (suite, metric, filter)
        named = (c for c in self.comparisons if (c.a, c.b) == (a, b) and c.quantity.key == key)
        return next(named, None)


def results_of(
    tables: Sequence[Table],
    pairs: Sequence[tuple[str, str]],
    resampling: Resampling,
    *,
    scorers: Mapping[str, Mapping[str, Any]],
    notes: Sequence[str],
    about: Mapping[str, Any],
) -> Results:
    """Return cells and corrected comparisons of all tables that have any value."""
    tables = [table for table in tables if table.value_NM.size]
    uncorrected = [each for table in tables for each in comparisons(table, pairs, resampling)]
    return Results(
        [cell for table in tables for cell in cells(table, resampling)],
        corrected(uncorrected),
        scorers,
        list(notes),
        about,
    )


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
_COMPARED = tuple(each.name for each in fields(Comparison) if each.name != "quantity")


def write_results(results: Results, path: Path) -> None:
    """Write results.json aside and rename it."""
    by_model: dict[str, dict[str, dict[str, Any]]] = {}
    quantities: dict[str, dict[str, Any]] = {}
    for cell in results.cells:
        q = cell.quantity
        suite = by_model.setdefault(cell.model, {}).setdefault(q.suite, {"alias": q.suite})
        suite[f"{q.metric},{q.filter}"] = _to_json(cell.value)
        for part in _PARTS:
            suite[f"{q.metric}_{part},{q.filter}"] = _to_json(getattr(cell, part))
        quantities[f"{q.suite}/{q.metric},{q.filter}"] = {
            "scorer": q.scorer,
            "better": q.better,
            "unit": q.unit,
        }
    compared = [
        {
            "suite": each.quantity.suite,
            "metric": each.quantity.metric,
            "filter": each.quantity.filter,
            **{name: _to_json(getattr(each, name)) for name in _COMPARED},
            "verdict": each.verdict,
        }
        for each in results.comparisons
    ]
    write_json(
        path,
        {
            "results": by_model,
            "comparisons": compared,
            "quantities": quantities,
            "scorers": {name: dict(meta) for name, meta in results.scorers.items()},
            "notes": list(results.notes),
            "about": dict(results.about),
        },
    )


def read_results(path: Path) -> Results:
    """Read results.json; raise ValueError in one line for anything else."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        quantities = raw["quantities"]
        return Results(
            [
                _cell(_quantity(quantities, suite, *name.split(",", 1)), model, values)
                for model, suites in raw["results"].items()
                for suite, values in suites.items()
                for name in values
                if f"{suite}/{name}" in quantities
            ],
            [
                Comparison(
                    _quantity(quantities, row["suite"], row["metric"], row["filter"]),
                    **{name: _from_json(row[name]) for name in _COMPARED},
                )
                for row in raw["comparisons"]
            ],
            raw["scorers"],
            raw["notes"],
            raw["about"],
        )
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: no results of an evaluation ({error!r})") from None


def _to_json(value: Any) -> Any:
    """NaN, which JSON does not have, is null."""
    if isinstance(value, Interval):
        return [_to_json(end) for end in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        low, high = map(_from_json, value)
        return Interval(low, high)
    return math.nan if value is None else value


def _quantity(quantities: Mapping[str, Any], suite: str, metric: str, filter: str) -> Quantity:
    return Quantity(suite, metric, filter, **quantities[f"{suite}/{metric},{filter}"])


def _cell(q: Quantity, model: str, values: Mapping[str, Any]) -> Cell:
    parts = {part: _from_json(values[f"{q.metric}_{part},{q.filter}"]) for part in _PARTS}
    return Cell(q, model, _from_json(values[f"{q.metric},{q.filter}"]), **parts)
