"""Paired differences between models, tested, corrected, and named only where they are significant.

Dimension key:  N prompts,  P pairs of models,  R resamples.
"""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pipeline.evaluation import statistics
from pipeline.evaluation.samples.tables import Quantity, Resampling, Table
from reward_models.intervals import Floats, Interval

Verdict = Literal["reduction", "rise", "no difference shown"]


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
        q = comparison.quantity
        families[q.suite, q.metric, q.filter == "all"].append(index)
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
        matches = [
            (model, second.replace("*", star))
            for model in models
            if (star := _star(first, model)) is not None
        ]
        pairs = [(a, b) for a, b in matches if b in models and b != a]
        if not pairs:
            raise ValueError(f"'{pattern}' matches no two models; there are {', '.join(models)}")
        result += [pair for pair in pairs if pair not in result]
    return result


def _star(pattern: str, model: str) -> str | None:
    """The text for which `*` stands where the pattern is the model, or None where it is not."""
    match = re.fullmatch(re.escape(pattern).replace(r"\*", "(.*)", 1), model, re.DOTALL)
    return None if match is None else "".join(match.groups())
