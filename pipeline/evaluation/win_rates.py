"""Which model is preferred, prompt by prompt, by any score that each response has.

A win rate by the gold judge is evidence. One by the reward model is not: PPO was trained on it.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation import statistics
from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.samples.tables import Quantity, Table, tabulate
from pipeline.evaluation.statistics import Floats

EXTREMES = (0.15, 0.85)
NEAR = 0.1  # of the baseline's length: so close are lengths called equal
_FEWEST = 20  # prompts of equal length below which their win rate is refused
_STEPS = 50


def length_controlled(win_N: Floats, gap_N: Floats) -> Floats:
    """A value a prompt whose mean is the win rate at equal length; NaN where it is refused.

    `win_N` is in 0..1 with ties one half, `gap_N` the difference in length, mine minus baseline's.
    """
    rate = float(win_N.mean()) if win_N.size else math.nan
    if not EXTREMES[0] <= rate <= EXTREMES[1]:
        return np.full(win_N.shape, math.nan)
    spread = float(gap_N.std())
    pull_N = np.tanh(gap_N / spread) if spread > 0 else np.zeros(gap_N.shape)
    b0, b1 = _fit(win_N, pull_N)
    return win_N - _sigmoid(b0 + b1 * pull_N) + float(_sigmoid(np.array(b0)))


def length_matched(win_N: Floats, length_N: Floats, other_N: Floats) -> Floats:
    """`win_N` where both responses are about equally long, else NaN; all NaN if too few are."""
    near_N: NDArray[np.bool_] = np.abs(length_N - other_N) <= NEAR * other_N
    if near_N.sum() < _FEWEST:
        return np.full(win_N.shape, math.nan)
    return np.where(near_N, win_N, math.nan)


def _fit(win_N: Floats, pull_N: Floats) -> tuple[float, float]:
    """Penalised maximum likelihood by Newton's method; the problem is concave."""
    design_N2 = np.stack([np.ones_like(pull_N), pull_N], axis=1)
    penalty_2 = np.array([0.0, 1.0])
    beta_2 = np.zeros(2)
    for _ in range(_STEPS):
        fitted_N = _sigmoid(design_N2 @ beta_2)
        gradient_2 = design_N2.T @ (win_N - fitted_N) - penalty_2 * beta_2
        weight_N = fitted_N * (1 - fitted_N)
        curvature_22 = (design_N2 * weight_N[:, None]).T @ design_N2 + np.diag(penalty_2)
        step_2 = np.linalg.solve(curvature_22, gradient_2)
        beta_2 = beta_2 + np.clip(step_2, -2.0, 2.0)
        if np.abs(step_2).max() < 1e-12:
            break
    return float(beta_2[0]), float(beta_2[1])


def _sigmoid(logit_N: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-logit_N))


WON = ("win_rate", "all")


def win_rate_tables(
    rows: Sequence[Completion],
    models: Sequence[str],
    *,
    baseline: str,
    scorer: str,
    metric: str,
    suite: str,
    tie: float,
) -> list[Table]:
    """Share of prompts where each model beats the baseline, ties half; over all and by category.

    With several samples a prompt, every pair of samples counts. The baseline's own column is .5.
    """
    return [
        _win_rates(kept, models, baseline, Quantity(suite, "win_rate", part, scorer, "higher"),
                   metric, tie)
        for part, kept in parts(rows)
    ]  # fmt: skip


def at_equal_length(rows: Sequence[Completion], won: Table, baseline: str) -> list[Table]:
    """The win rates of `won` controlled for length, and those of pairs of about equal length.

    A column is NaN where the raw rate is extreme, or where too few pairs are equally long.
    """
    place = won.models.index(baseline)
    length_NM = tabulate(rows, won.quantity, _length, won.models).value_NM
    controlled_NM = np.full(won.value_NM.shape, np.nan)
    matched_NM = controlled_NM.copy()
    for m in (m for m in range(len(won.models)) if m != place):
        win_N, mine_N, other_N = won.value_NM[:, m], length_NM[:, m], length_NM[:, place]
        kept_N = np.isfinite(win_N + mine_N + other_N)
        gap_N = mine_N[kept_N] - other_N[kept_N]
        controlled_NM[kept_N, m] = length_controlled(win_N[kept_N], gap_N)
        matched_NM[kept_N, m] = length_matched(win_N[kept_N], mine_N[kept_N], other_N[kept_N])
    named = {"win_rate_length_controlled": controlled_NM, "win_rate_length_matched": matched_NM}
    nobody = (0,) * len(won.models)
    return [
        Table(
            replace(won.quantity, metric=metric), won.models, value_NM, won.weight_N,
            tuple(np.isfinite(value_NM).sum(axis=0).tolist()), nobody,
        )
        for metric, value_NM in named.items()
    ]  # fmt: skip


def length_refusals(tables: Sequence[Table], baseline: str) -> list[str]:
    """A sentence for each win rate whose value at equal length is not given."""
    raw = [t for t in tables if (t.quantity.metric, t.quantity.filter) == WON and t.value_NM.size]
    rates = {table.quantity.suite: table for table in raw}
    return [
        f"{table.quantity.suite}: {model} has no win rate at equal length, since its raw rate is "
        f"{rate:.0%}, outside {EXTREMES[0]:.0%} to {EXTREMES[1]:.0%}"
        for table in rates.values()
        for model, rate in zip(table.models, np.nanmean(table.value_NM, axis=0), strict=True)
        if model != baseline and not EXTREMES[0] <= rate <= EXTREMES[1]
    ]


def _length(row: Completion) -> float:
    """In tokens where they were counted, else in words."""
    return float(len(row.completion.split()) if row.n_tokens is None else row.n_tokens)


def mean_tables(
    rows: Sequence[Completion],
    models: Sequence[str],
    *,
    scorer: str,
    metric: str,
    suite: str,
) -> list[Table]:
    """Mean of one score, over all prompts and by category; more is better."""
    return [
        tabulate(
            kept,
            Quantity(suite, metric, part, scorer, "higher"),
            lambda row: row.score(scorer, metric),
            models,
        )
        for part, kept in parts(rows)
    ]


def parts(rows: Sequence[Completion]) -> list[tuple[str, list[Completion]]]:
    """All rows, then those of each category (use case) that there is."""
    categories = sorted({row.category for row in rows if row.category})
    by_category = [(name, [row for row in rows if row.category == name]) for name in categories]
    return [("all", list(rows)), *by_category]


def _win_rates(
    rows: Sequence[Completion],
    models: Sequence[str],
    baseline: str,
    quantity: Quantity,
    metric: str,
    tie: float,
) -> Table:
    scores: dict[tuple[str, str], list[float]] = {}
    failed = dict.fromkeys(models, 0)
    for row in rows:
        value = row.score(quantity.scorer, metric)
        if value is None:
            failed[row.model] += 1
        else:
            scores.setdefault((row.id, row.model), []).append(value)
    order = sorted({row.id for row in rows})
    value_NM: Floats = np.full((len(order), len(models)), np.nan)
    for n, prompt in enumerate(order):
        against = scores.get((prompt, baseline))
        for m, model in enumerate(models):
            if against and (mine := scores.get((prompt, model))):
                won = statistics.win_share(np.array(mine), np.array(against), tie)
                value_NM[n, m] = 0.5 if model == baseline else won
    counts = tuple(sum(len(scores.get((n, model), ())) for n in order) for model in models)
    weight_N = np.ones(len(order))
    return Table(quantity, tuple(models), value_NM, weight_N, counts, tuple(failed.values()))
