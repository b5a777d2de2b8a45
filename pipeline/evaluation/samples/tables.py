"""One quantity of several models over the same prompts, and its intervals.

Dimension key:  N prompts,  M models,  S samples of all prompts and models.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.evaluation import statistics
from pipeline.evaluation.samples.scored_rows import ScoredRows
from reward_models.intervals import Floats, Interval

Better = Literal["lower", "higher"] | None
_SMALL = 30  # prompts below which a rate gets Wilson's interval


@dataclass(frozen=True, slots=True)
class Quantity:
    """A measured quantity: `filter` is the part of the suite (an instruction, a use case)."""

    suite: str
    metric: str
    filter: str = "all"
    scorer: str = "counting"
    better: Better = None
    unit: str = "prompt"  # resampled


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
    """One number with what is needed to trust it: interval, n prompts, failures, its scorer."""

    quantity: Quantity
    model: str
    value: float
    stderr: float
    ci95: Interval
    n: int
    n_samples: int
    n_failed: int
    interval: Literal["bootstrap", "wilson"]


@dataclass(frozen=True, slots=True)
class Resampling:
    """The numbers of resamples, and the seed; one for all tables, so row order never matters."""

    resamples: int = 10_000
    sign_flips: int = 20_000
    seed: int = 0

    def rng(self) -> np.random.Generator:
        """A fresh generator, the same every time."""
        return np.random.default_rng(self.seed)


def mean(value_K: Floats) -> float:
    """Return the mean of one prompt's samples: the usual way to combine them."""
    return float(value_K.mean())


def tabulate(
    rows: ScoredRows,
    quantity: Quantity,
    value_S: Floats,
    models: Sequence[str],
    combine: Callable[[Floats], float] = mean,
) -> Table:
    """Return the table of a value of each row; NaN counts as failed, samples are combined."""
    prompt_S, prompts = pd.factorize(rows.fields["id"], sort=True)
    model_S = pd.Categorical(rows.fields["model"], categories=list(models)).codes.astype(int)
    scored_S = np.isfinite(value_S)
    used_S = scored_S & (model_S >= 0)
    cell_S = prompt_S[used_S] * len(models) + model_S[used_S]
    counts = [
        np.bincount(model_S[mask_S & (model_S >= 0)], minlength=len(models))
        for mask_S in (scored_S, ~scored_S)
    ]
    return Table(
        quantity,
        tuple(models),
        _combined(cell_S, value_S[used_S], (len(prompts), len(models)), combine),
        np.ones(len(prompts)),
        *(tuple(count_M.tolist()) for count_M in counts),
    )


def score_table(
    rows: ScoredRows, quantity: Quantity, models: Sequence[str], metric: str | None = None
) -> Table:
    """Return the table of a score, by its own name or as `metric`, of rows it applies to."""
    name = metric or quantity.metric
    judged = rows.judged(quantity.scorer, name)
    return tabulate(judged, quantity, judged.score(quantity.scorer, name), models)


def _combined(
    cell_S: NDArray[np.int64],
    value_S: Floats,
    shape: tuple[int, int],
    combine: Callable[[Floats], float],
) -> Floats:
    """Samples by their cell of the table, combined from the smallest on; NaN without any."""
    value_C = np.full(shape[0] * shape[1], math.nan)
    order = np.lexsort((value_S, cell_S))
    value_S = value_S[order]
    filled, starts = np.unique(cell_S[order], return_index=True)
    for cell, part_K in zip(filled, np.split(value_S, starts[1:]), strict=False):
        value_C[cell] = combine(part_K)
    return value_C.reshape(shape)


def cells(table: Table, resampling: Resampling) -> list[Cell]:
    """Return a cell for each model that has any prompt in the table or failed on all of them."""
    if not table.value_NM.size:
        return []
    weight_NM = np.isfinite(table.value_NM) * table.weight_N[:, None]
    draw_RM = statistics.bootstrap_means(
        table.value_NM, weight_NM, resampling.resamples, resampling.rng()
    )
    return [
        _cell(table, model, m, draw_RM[:, m])
        for m, model in enumerate(table.models)
        if table.samples_M[m] + table.failed_M[m]
    ]


def _cell(table: Table, model: str, m: int, draw_R: Floats) -> Cell:
    present_N = np.isfinite(table.value_NM[:, m])
    value_N, weight_N = table.value_NM[present_N, m], table.weight_N[present_N]
    counts = (n, num_samples, _) = int(present_N.sum()), table.samples_M[m], table.failed_M[m]
    if not n:
        nothing = Interval(math.nan, math.nan)
        return Cell(table.quantity, model, math.nan, math.nan, nothing, *counts, "bootstrap")
    value = float(np.average(value_N, weights=weight_N))
    if not (num_samples == n and np.isin(value_N, (0.0, 1.0)).all() and (weight_N == 1).all()):
        ci95, stderr = statistics.percentile_interval(draw_R), float(np.nanstd(draw_R))
        return Cell(table.quantity, model, value, stderr, ci95, *counts, "bootstrap")
    successes, stderr = int(value_N.sum()), math.sqrt(value * (1 - value) / n)
    if n < _SMALL or successes in (0, n):
        ci95 = statistics.wilson_interval(successes, n)
        return Cell(table.quantity, model, value, stderr, ci95, *counts, "wilson")
    ci95 = statistics.rate_interval(successes, n)
    return Cell(table.quantity, model, value, stderr, ci95, *counts, "bootstrap")
