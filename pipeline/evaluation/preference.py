"""Which model is preferred, prompt by prompt, by any score that each response has.

A win rate by the gold judge is evidence. One by the reward model is not: PPO was trained on it.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.evaluation import statistics
from pipeline.evaluation.samples import Completion
from pipeline.evaluation.statistics import Floats
from pipeline.evaluation.tables import Quantity, Table, tabulate


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
