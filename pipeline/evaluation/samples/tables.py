"""One quantity of several models over the same prompts: its intervals, and paired differences.

Dimension key:  N prompts,  M models,  P pairs of models,  R resamples,  S samples of all.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.evaluation import statistics
from pipeline.evaluation.samples.records import ScoredRows
from reward_models.intervals import Floats, Interval

Better = Literal["lower", "higher"] | None
Verdict = Literal["reduction", "rise", "no difference shown"]
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

    @property
    def key(self) -> tuple[str, str, str]:
        """Its name among the results of a model."""
        return self.suite, self.metric, self.filter


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
class Comparison:
    """Model `a` minus model `b` on the prompts both have; `change` is the share of b's mean."""

    quantity: Quantity
    a: str
    b: str
    diff: float
    ci95: Interval
    change: float
    change_ci95: Interval
    p: float
    test: Literal["sign-flip", "mcnemar"]
    n: int
    minimum_detectable: float
    p_holm: float = math.nan

    @property
    def verdict(self) -> Verdict:
        """A change is named only if its interval leaves 0 out and Holm's p is below .05."""
        if not self.ci95.excludes_zero or not self.p_holm < 0.05:
            return "no difference shown"
        return "rise" if self.diff > 0 else "reduction"


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


def comparisons(
    table: Table, pairs: Sequence[tuple[str, str]], resampling: Resampling
) -> list[Comparison]:
    """Return paired differences of the pairs that share prompts; Holm's p is still to be set."""
    column = {model: m for m, model in enumerate(table.models)}
    value_NM = table.value_NM
    shared = [
        (a, b)
        for a, b in pairs
        if a in column
        and b in column
        and np.isfinite(value_NM[:, column[a]] + value_NM[:, column[b]]).any()
    ]
    if not shared:
        return []
    first_NP = value_NM[:, [column[a] for a, _ in shared]]
    second_NP = value_NM[:, [column[b] for _, b in shared]]
    weight_NP = np.isfinite(first_NP + second_NP) * table.weight_N[:, None]
    draw_RP = statistics.bootstrap_means(
        np.hstack([first_NP, second_NP]),
        np.hstack([weight_NP, weight_NP]),
        resampling.resamples,
        resampling.rng(),
    )
    difference_NP = np.where(weight_NP > 0, first_NP - second_NP, 0.0) * weight_NP
    p_P = statistics.sign_flip_p(difference_NP, resampling.sign_flips, resampling.rng())
    singles = {m for m, n in zip(table.models, table.samples_M, strict=True) if n <= len(value_NM)}
    return [
        _comparison(
            table.quantity,
            pair,
            np.stack([first_NP[:, i], second_NP[:, i]], axis=1)[weight_NP[:, i] > 0],
            weight_NP[weight_NP[:, i] > 0, i],
            draw_RP[:, [i, len(shared) + i]],
            p_P[i],
            single=set(pair) <= singles,
        )
        for i, pair in enumerate(shared)
    ]


def _comparison(
    quantity: Quantity,
    pair: tuple[str, str],
    value_N2: Floats,
    weight_N: Floats,
    draw_R2: Floats,
    sign_flip_p: float,
    *,
    single: bool,
) -> Comparison:
    a, b = (float(np.average(value_N2[:, i], weights=weight_N)) for i in (0, 1))
    difference_N = (value_N2[:, 0] - value_N2[:, 1]) * weight_N / weight_N.mean()
    difference_R = draw_R2[:, 0] - draw_R2[:, 1]
    change, change_ci95 = math.nan, Interval(math.nan, math.nan)
    if b > 0:
        change = (a - b) / b
        with np.errstate(divide="ignore", invalid="ignore"):
            change_ci95 = statistics.percentile_interval(difference_R / draw_R2[:, 1])
    is_binary = single and bool(np.isin(value_N2, (0.0, 1.0)).all())
    if is_binary:
        wins, losses = int((difference_N > 0).sum()), int((difference_N < 0).sum())
    return Comparison(
        quantity,
        *pair,
        diff=a - b,
        ci95=statistics.percentile_interval(difference_R),
        change=change,
        change_ci95=change_ci95,
        p=statistics.mcnemar_p(wins, losses) if is_binary else sign_flip_p,
        test="mcnemar" if is_binary else "sign-flip",
        n=len(value_N2),
        minimum_detectable=statistics.minimum_detectable_effect(difference_N),
    )


def corrected(uncorrected: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons with Holm's p over each family: one metric of one suite.

    Where a metric has a value over all prompts and a breakdown, these are two families: the former
    is the question, the latter shows where the answer comes from.
    """
    families: dict[tuple[str, str, bool], list[int]] = defaultdict(list)
    for index, comparison in enumerate(uncorrected):
        suite, metric, part = comparison.quantity.key
        families[suite, metric, part == "all"].append(index)
    result = list(uncorrected)
    for members in families.values():
        p_values = statistics.holm([uncorrected[i].p for i in members])
        for index, p in zip(members, p_values, strict=True):
            result[index] = replace(uncorrected[index], p_holm=p)
    return result


def matched_pairs(models: Sequence[str], against: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs to compare from patterns `A:B`; a `*` in A stands for the same text in B.

    "*:sft" compares all others with sft, "ppo-*:gpt-*" each ppo model with the gpt of its size.
    Without a pattern every pair is compared. Raises ValueError on a pattern that matches none.
    """
    if not against:
        return [(b, a) for i, a in enumerate(models) for b in models[i + 1 :]]
    result: list[tuple[str, str]] = []
    for pattern in against:
        first, colon, second = pattern.partition(":")
        if not colon:
            first, second = "*", pattern
        star = re.compile(re.escape(first).replace(r"\*", "(.*)", 1), re.DOTALL)
        matches = [
            (model, second.replace("*", "".join(match.groups())))
            for model in models
            if (match := star.fullmatch(model))
        ]
        pairs = [(a, b) for a, b in matches if b in models and b != a]
        if not pairs:
            raise ValueError(f"'{pattern}' matches no two models; there are {', '.join(models)}")
        result += [pair for pair in pairs if pair not in result]
    return result
