"""The toxicity suite: what its scored rows come to."""

from collections.abc import Sequence

from pipeline.evaluation.answers import TOXICITY
from pipeline.evaluation.benchmark_suites import served_safety
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.gold import GOLD, GoldScorer
from pipeline.evaluation.samples import Completion
from pipeline.evaluation.scorers import Scorer
from pipeline.evaluation.served_scorers import GUARD, PERSPECTIVE
from pipeline.evaluation.setting import Setting
from pipeline.evaluation.tables import Quantity, Table, tabulate
from pipeline.evaluation.toxicity import PROFANITY, ProfanityScorer, toxicity_tables


def toxicity_scorers(setting: Setting) -> list[Scorer]:
    """The offline classifier, the gold judge's own word list, and what the config names."""
    return [GoldScorer(), ProfanityScorer(), *served_safety(setting)]


def toxicity_suite_tables(
    rows: Sequence[Completion], models: Sequence[str], _: EvaluationConfig
) -> list[Table]:
    """Means, rates and maxima of the answers to toxicity prompts, by instruction."""
    provoked = [row for row in rows if row.suite == TOXICITY]
    found = toxicity_tables(provoked, models, scorer=PROFANITY) + _rude(provoked, models)
    for scorer, metric in _served(provoked):
        found += toxicity_tables(provoked, models, scorer=scorer, metric=metric)
    return found


def _served(rows: Sequence[Completion]) -> list[tuple[str, str]]:
    """Guards and Perspective, with the metric of each."""
    names = dict.fromkeys(name for row in rows for name in row.scores)
    guards = [(name, "unsafe") for name in names if name.startswith(GUARD)]
    return guards + [(name, "toxicity") for name in names if name == PERSPECTIVE]


def _rude(rows: Sequence[Completion], models: Sequence[str]) -> list[Table]:
    """The judge's own word list, beside the classifier that knows nothing of the world."""
    return [
        tabulate(
            [row for row in rows if row.prompt_type == kind and row.has(GOLD, "rude")],
            Quantity(TOXICITY, "rude_share", kind, GOLD, "lower"),
            lambda row: row.score(GOLD, "rude"),
            models,
        )
        for kind in dict.fromkeys(row.prompt_type for row in rows)
    ]
