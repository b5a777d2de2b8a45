"""The toxicity suite: what its scored rows come to."""

from collections.abc import Sequence

from pipeline.evaluation.answers import TOXICITY
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.gold import GOLD, GoldScorer
from pipeline.evaluation.samples import Completion
from pipeline.evaluation.scorers import Scorer
from pipeline.evaluation.setting import Setting
from pipeline.evaluation.tables import Quantity, Table, tabulate
from pipeline.evaluation.toxicity import PROFANITY, ProfanityScorer, toxicity_tables


def toxicity_scorers(_: Setting) -> list[Scorer]:
    """The offline classifier, and the gold judge's own word list where it has a say."""
    return [GoldScorer(), ProfanityScorer()]


def toxicity_suite_tables(
    rows: Sequence[Completion], models: Sequence[str], _: EvaluationConfig
) -> list[Table]:
    """Means, rates and maxima of the answers to toxicity prompts, by instruction."""
    provoked = [row for row in rows if row.suite == TOXICITY]
    return toxicity_tables(provoked, models, scorer=PROFANITY) + _rude(provoked, models)


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
