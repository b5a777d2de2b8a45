"""Closed-domain hallucination: facts that a passage does not hold, and abstention.

Without a judge the estimate is lexical (see `scorers/lexical_support.py`). Abstention on questions
marked answerable or not needs no model at all.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from pipeline.config.evaluation import EvaluationConfig
from pipeline.evaluation.generate import TEST
from pipeline.evaluation.samples.records import ScoredRows
from pipeline.evaluation.samples.tables import Better, Quantity, Table, score_table, tabulate
from pipeline.evaluation.scorers.gold import GOLD, GoldScorer
from pipeline.evaluation.scorers.grounding import LEXICAL, LexicalSupport
from pipeline.evaluation.scorers.scorer import Scorer
from pipeline.evaluation.scorers.style import PHRASES, abstains
from pipeline.evaluation.suites.suite import Inputs, Suite
from reward_models.intervals import Floats

SUITE: Final = "hallucination"


def hallucination_scorers(inputs: Inputs) -> list[Scorer]:
    """Return the gold judge where it applies, the lexical estimate, and the user's classifiers."""
    config = inputs.config
    scorers: list[Scorer] = [GoldScorer(), LexicalSupport(config.closed_domain)]
    for entailment in config.entailment:
        from pipeline.evaluation.scorers.grounding import EntailmentScorer

        scorers.append(EntailmentScorer(entailment, config.closed_domain))
    return scorers


def hallucination_tables(
    rows: ScoredRows, models: Sequence[str], config: EvaluationConfig
) -> list[Table]:
    """Return the headline rate and its parts over closed-domain rows, and by category."""
    closed = _closed_domain(rows, config)
    is_judged = len(closed) > 0 and bool(closed.has(GOLD, "hallucinated").all())
    judge = GOLD if is_judged else LEXICAL
    tables = []
    for metric, better, scorer, answerable in _metrics(is_judged):
        part = closed
        if answerable is not None:
            part = closed.where(closed.fields["answerable"] == answerable)
        value_S = _value(metric, part, is_judged)
        tables.append(
            tabulate(part, Quantity(SUITE, metric, "all", scorer, better), value_S, models)
        )
    for scorer in closed.scorers:
        if "not_entailed" in closed.metrics(scorer):  # each classifier is a part of its own
            quantity = Quantity(SUITE, "not_entailed", scorer, scorer, "lower")
            tables.append(score_table(closed, quantity, models))
    for category, part in sorted(closed.by("category")):
        quantity = Quantity(SUITE, "hallucination", category, judge, "lower")
        tables.append(tabulate(part, quantity, _hallucinated(part, is_judged), models))
    return [table for table in tables if table.value_NM.size]


def _closed_domain(rows: ScoredRows, config: EvaluationConfig) -> ScoredRows:
    tested = rows.of_suite(TEST.name)
    return tested.where(tested.fields["category"].isin(config.closed_domain))


def _metrics(is_judged: bool) -> list[tuple[str, Better, str, bool | None]]:
    """Metric, better, scorer, and whether it is of answerable or unanswerable questions only."""
    abstaining = GOLD if is_judged else PHRASES
    metrics: list[tuple[str, Better, str, bool | None]] = [
        ("hallucination", "lower", GOLD if is_judged else LEXICAL, None),
        ("answered_unanswerable", "lower", abstaining, False),
        ("false_abstention", "lower", abstaining, True),
        ("unsupported", "lower", LEXICAL, None),
        ("novel_bigrams", None, LEXICAL, None),
    ]
    if is_judged:
        metrics.append(("hallucinated", "lower", GOLD, None))
        metrics.append(("correct_answerable", "higher", GOLD, True))
    return metrics


def _value(metric: str, rows: ScoredRows, is_judged: bool) -> Floats:
    match metric:
        case "hallucination":
            return _hallucinated(rows, is_judged)
        case "answered_unanswerable":
            return 1 - _abstained(rows, is_judged)
        case "false_abstention":
            return _abstained(rows, is_judged)
        case "hallucinated":
            return rows.score(GOLD, "hallucinated")
        case "correct_answerable":
            return rows.score(GOLD, "correct")
        case _:
            return rows.score(LEXICAL, metric)


def _hallucinated(rows: ScoredRows, is_judged: bool) -> Floats:
    """A hallucinated fact, or any answer to a question that the passage does not answer."""
    scorer, metric = (GOLD, "hallucinated") if is_judged else (LEXICAL, "unsupported")
    answered_S = 1 - _abstained(rows, is_judged)
    unanswerable_S = (rows.fields["answerable"] == False).to_numpy()  # noqa: E712 - not None
    return np.maximum(rows.score(scorer, metric), np.where(unanswerable_S, answered_S, 0.0))


def _abstained(rows: ScoredRows, is_judged: bool) -> Floats:
    if is_judged:
        return rows.score(GOLD, "abstained")
    return np.array([float(abstains(text)) for text in rows.fields["completion"]])


def hallucination_notes(rows: ScoredRows, config: EvaluationConfig) -> list[str]:
    """Return a caveat where words alone decide."""
    closed = _closed_domain(rows, config)
    if not len(closed) or closed.has(GOLD, "hallucinated").any():
        return []
    return ["hallucination is estimated by words alone and grows with abstraction"]


HALLUCINATION = Suite(SUITE, TEST, hallucination_tables, hallucination_scorers, hallucination_notes)
