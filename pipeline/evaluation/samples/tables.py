"""One quantity of several models over the same prompts, and its intervals.

Dimension key:  N prompts,  M models,  S samples of all prompts and models.
"""

import math
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation import statistics
from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.statistics import Floats

Better = Literal["lower", "higher"] | None
Interval = Literal["bootstrap", "wilson"]
_SMALL = 30  # prompts below which a rate gets Wilson's interval


@dataclass(frozen=True, slots=True)
class Quantity:
    """What is measured: `filter` is the part of the suite (an instruction, a use case)."""

    suite: str
    metric: str
    filter: str = "all"
    scorer: str = "counting"
    better: Better = None
    unit: str = "prompt"  # what is resampled


@dataclass(frozen=True, slots=True)
class Table:
    """Values by prompt and model; NaN where a model has none. Prompts weigh `weight_N`."""

    quantity: Quantity
    models: tuple[str, ...]
    value_NM: Floats
    weight_N: Floats
    samples_M: tuple[int, ...]
    failed_M: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """One number with what is needed to trust it: interval, n prompts, failures, who scored it."""

    quantity: Quantity
    model: str
    value: float
    stderr: float
    ci95: tuple[float, float]
    n: int
    n_samples: int
    n_failed: int
    interval: Interval


@dataclass(frozen=True, slots=True)
class Resampling:
    """How often to resample, and the seed; one seed for all tables, so row order never matters."""

    resamples: int = 10_000
    sign_flips: int = 20_000
    seed: int = 0

    def rng(self) -> np.random.Generator:
        """A fresh generator, the same every time."""
        return np.random.default_rng(self.seed)


def mean(value_K: Floats) -> float:
    """The usual way to combine the samples of one prompt."""
    return float(value_K.mean())


def tabulate(
    rows: Iterable[Completion],
    quantity: Quantity,
    of: Callable[[Completion], float | None],
    models: Sequence[str],
    combine: Callable[[Floats], float] = mean,
) -> Table:
    """The table of `of` over rows; samples of one prompt are combined, None counts as failed."""
    column = {model: m for m, model in enumerate(models)}
    number: dict[str, int] = {}
    places, values = array("q"), array("d")
    failed: dict[str, int] = defaultdict(int)
    samples: dict[str, int] = defaultdict(int)
    for row in rows:
        prompt = number.setdefault(row.id, len(number))
        value = of(row)
        if value is None:
            failed[row.model] += 1
            continue
        samples[row.model] += 1
        if row.model in column:
            places.append(prompt * len(models) + column[row.model])
            values.append(value)
    found_NM = _combined(np.array(places), np.array(values), (len(number), len(models)), combine)
    value_NM = found_NM[[number[prompt] for prompt in sorted(number)]]
    return Table(
        quantity,
        tuple(models),
        value_NM,
        np.ones(len(number)),
        tuple(samples[model] for model in models),
        tuple(failed[model] for model in models),
    )


def _combined(
    place_S: NDArray[np.int64],
    value_S: Floats,
    shape: tuple[int, int],
    combine: Callable[[Floats], float],
) -> Floats:
    """Samples by their places in the table, combined from the smallest on; NaN without any."""
    found = np.full(shape[0] * shape[1], math.nan)
    order = np.lexsort((value_S, place_S))
    value_S = value_S[order]
    place, start = np.unique(place_S[order], return_index=True)
    ends = np.append(start, len(value_S))[1:]
    for at, begin, end in zip(place, start, ends, strict=True):
        found[at] = combine(value_S[begin:end])
    return found.reshape(shape)


def cells(table: Table, resampling: Resampling) -> list[Cell]:
    """One cell a model that has any prompt in the table or failed on all of them."""
    if not table.value_NM.size:
        return []
    present_NM = np.isfinite(table.value_NM)
    weight_NM = present_NM * table.weight_N[:, None]
    draw_RM = statistics.bootstrap_means(
        table.value_NM, weight_NM, resampling.resamples, resampling.rng()
    )
    found = []
    for m, model in enumerate(table.models):
        if table.samples_M[m] + table.failed_M[m]:
            found.append(_cell(table, model, m, draw_RM[:, m]))
    return found


def _cell(table: Table, model: str, m: int, draw_R: Floats) -> Cell:
    kept_N = np.isfinite(table.value_NM[:, m])
    value_N, weight_N = table.value_NM[kept_N, m], table.weight_N[kept_N]
    n = int(kept_N.sum())
    value = float(np.average(value_N, weights=weight_N)) if n else math.nan
    ci95, stderr = (
        statistics.percentile_interval(draw_R),
        float(np.nanstd(draw_R)) if n else math.nan,
    )
    interval: Interval = "bootstrap"
    if n and table.samples_M[m] == n and _is_rate(value_N, weight_N):
        successes = int(value_N.sum())
        stderr = math.sqrt(value * (1 - value) / n)
        if n < _SMALL or successes in (0, n):
            ci95, interval = statistics.wilson_interval(successes, n), "wilson"
        else:
            ci95 = statistics.rate_interval(successes, n)
    counts = (n, table.samples_M[m], table.failed_M[m])
    return Cell(table.quantity, model, value, stderr, ci95, *counts, interval)


def _is_rate(value_N: Floats, weight_N: Floats) -> bool:
    return bool(np.isin(value_N, (0.0, 1.0)).all() and (weight_N == 1).all())
