"""Closed-domain hallucination: facts that a passage does not hold, and abstention.

Without a judge the estimate is lexical (see `scorers/grounding.py`). Abstention on questions
marked answerable or not needs no model at all.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from pipeline.config.evaluation import EvaluationConfig
from pipeline.evaluation.generate import TEST
from pipeline.evaluation.samples.records import Bools, ScoredRows
from pipeline.evaluation.samples.tables import Better, Quantity, Table, score_table, tabulate
from pipeline.evaluation.scorers.gold import GOLD, GoldScorer
from pipeline.evaluation.scorers.grounding import LEXICAL, EntailmentScorer, LexicalSupport
from pipeline.evaluation.scorers.scorer import Scorer
from pipeline.evaluation.scorers.style import PHRASES, abstains
from pipeline.evaluation.suites.suite import Inputs, Suite
from reward_models.intervals import Floats

SUITE: Final = "hallucination"


def hallucination_scorers(inputs: Inputs) -> list[Scorer]:
    """Return the gold judge where it applies, the lexical estimate, and the user's classifiers."""
    config = inputs.config
    classifiers = [EntailmentScorer(each, config.closed_domain) for each in config.entailment]
    return [GoldScorer(), LexicalSupport(config.closed_domain), *classifiers]


def hallucination_tables(
    rows: ScoredRows, models: Sequence[str], config: EvaluationConfig
) -> list[Table]:
    """Return the headline rate and its parts over closed-domain rows, and by category."""
    closed = _closed_domain(rows, config)
    is_judged = len(closed) > 0 and bool(closed.has(GOLD, "hallucinated").all())
    judge, abstaining = (GOLD, GOLD) if is_judged else (LEXICAL, PHRASES)
    if is_judged:
        abstained_S = closed.score(GOLD, "abstained")
    else:
        abstained_S = np.array([float(abstains(text)) for text in closed.fields["completion"]])
    all_S = np.ones(len(closed), dtype=bool)
    answerable_S, unanswerable_S = (
        (closed.fields["answerable"] == value).to_numpy(dtype=bool) for value in (True, False)
    )
    # A hallucinated fact, or any answer to a question that the passage does not answer.
    hallucinated_S = np.maximum(
        closed.score(judge, "hallucinated" if is_judged else "unsupported"),
        np.where(unanswerable_S, 1 - abstained_S, 0.0),
    )
    measures: list[tuple[str, Better, str, Bools, Floats]] = [
        ("hallucination", "lower", judge, all_S, hallucinated_S),
        ("answered_unanswerable", "lower", abstaining, unanswerable_S, 1 - abstained_S),
        ("false_abstention", "lower", abstaining, answerable_S, abstained_S),
        ("unsupported", "lower", LEXICAL, all_S, closed.score(LEXICAL, "unsupported")),
        ("novel_bigrams", None, LEXICAL, all_S, closed.score(LEXICAL, "novel_bigrams")),
    ]
    if is_judged:
        measures += [
            ("hallucinated", "lower", GOLD, all_S, closed.score(GOLD, "hallucinated")),
            ("correct_answerable", "higher", GOLD, answerable_S, closed.score(GOLD, "correct")),
        ]
    tables = [
        tabulate(
            closed.where(part_S),
            Quantity(SUITE, name, "all", scorer, better),
            value_S[part_S],
            models,
        )
        for name, better, scorer, part_S, value_S in measures
    ]
    for scorer in closed.scorers:
        if "not_entailed" in closed.metrics(scorer):  # each classifier is a part of its own
            quantity = Quantity(SUITE, "not_entailed", scorer, scorer, "lower")
            tables.append(score_table(closed, quantity, models))
    for category in sorted(set(closed.fields["category"])):
        part_S = (closed.fields["category"] == category).to_numpy()
        quantity = Quantity(SUITE, "hallucination", category, judge, "lower")
        tables.append(tabulate(closed.where(part_S), quantity, hallucinated_S[part_S], models))
    return [table for table in tables if table.value_NM.size]


def _closed_domain(rows: ScoredRows, config: EvaluationConfig) -> ScoredRows:
    tested = rows.of_suite(TEST.name)
    return tested.where(tested.fields["category"].isin(config.closed_domain))


def hallucination_notes(rows: ScoredRows, config: EvaluationConfig) -> list[str]:
    """Return a caveat where words alone decide."""
    closed = _closed_domain(rows, config)
    if not len(closed) or closed.has(GOLD, "hallucinated").any():
        return []
    return ["hallucination is estimated by words alone and grows with abstraction"]


HALLUCINATION = Suite(SUITE, TEST, hallucination_tables, hallucination_scorers, hallucination_notes)
