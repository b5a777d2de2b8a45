"""Paired differences between models, tested, corrected, and named only when they are shown.

Dimension key:  N prompts,  P pairs of models,  R resamples.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pipeline.evaluation import statistics
from pipeline.evaluation.samples.tables import Quantity, Resampling, Table
from pipeline.evaluation.statistics import Floats

Verdict = Literal["reduction", "rise", "no difference shown"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Model `a` minus model `b` on the prompts both have; `change` is the share of b's mean."""

    quantity: Quantity
    a: str
    b: str
    diff: float
    ci95: tuple[float, float]
    change: float
    change_ci95: tuple[float, float]
    p: float
    test: Literal["sign-flip", "mcnemar"]
    n: int
    minimum_detectable: float
    p_holm: float = math.nan

    @property
    def verdict(self) -> Verdict:
        """A change is named only if its interval leaves 0 out and Holm's p is below .05."""
        low, high = self.ci95
        if not (low > 0 or high < 0) or not self.p_holm < 0.05:
            return "no difference shown"
        return "rise" if self.diff > 0 else "reduction"


def comparisons(
    table: Table, pairs: Sequence[tuple[str, str]], resampling: Resampling
) -> list[Comparison]:
    """Paired differences of the pairs that share prompts here; Holm's p is still to be set."""
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
    binary = single and bool(np.isin(value_N2, (0.0, 1.0)).all())
    with np.errstate(divide="ignore", invalid="ignore"):
        change_R = (draw_R2[:, 0] - draw_R2[:, 1]) / draw_R2[:, 1]
    return Comparison(
        quantity,
        *pair,
        diff=a - b,
        ci95=statistics.percentile_interval(draw_R2[:, 0] - draw_R2[:, 1]),
        change=(a - b) / b if b > 0 else math.nan,
        change_ci95=statistics.percentile_interval(change_R) if b > 0 else (math.nan, math.nan),
        p=(
            statistics.mcnemar_p(int((difference_N > 0).sum()), int((difference_N < 0).sum()))
            if binary
            else sign_flip_p
        ),
        test="mcnemar" if binary else "sign-flip",
        n=len(value_N2),
        minimum_detectable=statistics.minimum_detectable_effect(difference_N),
    )


def corrected(found: Sequence[Comparison]) -> list[Comparison]:
    """Holm's p over each family: all comparisons of one metric of one suite.

    Where a metric has a value over all prompts and a breakdown, these are two families: the former
    is what was asked, the latter shows where it comes from.
    """
    families: dict[tuple[str, str, bool], list[int]] = defaultdict(list)
    for index, comparison in enumerate(found):
        q = comparison.quantity
        families[q.suite, q.metric, q.filter == "all"].append(index)
    result = list(found)
    for members in families.values():
        for index, p in zip(members, statistics.holm([found[i].p for i in members]), strict=True):
            result[index] = replace(found[index], p_holm=p)
    return result
