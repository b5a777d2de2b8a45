"""results.json: lm-eval's shape for every model, with intervals, counts and paired comparisons.

{"results": {model: {suite: {"metric,filter": value, "metric_stderr,filter": ...,
                             "metric_ci95,filter": [low, high], "metric_n,filter": ...}}},
 "comparisons": [{"a", "b", "suite", "metric", "filter", "diff", "ci95", "p", "p_holm", ...}],
 "quantities": {"suite/metric,filter": {"scorer", "better", "unit"}},
 "scorers": {name: {"version", "sha256", "threshold"}}, "notes": [...], "about": {...}}
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluation.comparisons import Comparison
from pipeline.evaluation.results import Results
from pipeline.evaluation.tables import Cell, Quantity

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
