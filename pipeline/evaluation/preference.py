"""Which model is preferred, prompt by prompt, by any score that each response has.

A win rate by the gold judge is evidence. One by the reward model is not: PPO was trained on it.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.evaluation import statistics
from pipeline.evaluation.answers import TEST
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.gold import GOLD, GoldScorer
from pipeline.evaluation.reward_scorer import REWARD, RewardScorer
from pipeline.evaluation.samples import Completion
from pipeline.evaluation.scorers import Scorer
from pipeline.evaluation.setting import Setting
from pipeline.evaluation.statistics import Floats
from pipeline.evaluation.tables import Quantity, Table, tabulate


def preference_scorers(setting: Setting) -> list[Scorer]:
    """The gold judge where it has a say, and the reward model where there is one."""
    found: list[Scorer] = [GoldScorer()]
    if setting.reward_model is not None:
        policies, size = list(setting.policies.values()), setting.config.sampling.batch_size
        found.append(RewardScorer(setting.reward_model, policies, size))
    return found


def preference_tables(
    rows: Sequence[Completion], models: Sequence[str], config: EvaluationConfig
) -> list[Table]:
    """Win rates against the baseline and mean scores, by the gold judge and the reward model."""
    tested = [row for row in rows if row.suite == TEST]
    marked = [row for row in tested if row.has(GOLD, "gold")]
    rewarded = [row for row in tested if row.has(REWARD, "score")]
    found: list[Table] = []
    for kept, scorer, metric, suite in (
        (marked, GOLD, "gold", "preference"),
        (rewarded, REWARD, "score", "preference_by_reward_model"),
    ):
        found += win_rate_tables(
            kept, models, baseline=config.baseline, scorer=scorer, metric=metric, suite=suite,
            tie=config.tie,
        )  # fmt: skip
    for kept, scorer, metric, suite in (
        (marked, GOLD, "gold", "use_cases"),
        (marked, GOLD, "correct", "use_cases"),
        (rewarded, REWARD, "score", "reward_model"),
    ):
        found += mean_tables(kept, models, scorer=scorer, metric=metric, suite=suite)
    return found


def preference_notes(rows: Sequence[Completion], _: EvaluationConfig) -> list[str]:
    """What must be said about who preferred."""
    notes = []
    if any(row.has(REWARD, "score") for row in rows):
        notes.append("the reward model is what PPO was trained on; its win rates are no evidence")
    if any(row.has(GOLD, "gold") for row in rows):
        notes.append("prompts and texts are synthetic; the gold judge is true by construction")
    return notes


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
