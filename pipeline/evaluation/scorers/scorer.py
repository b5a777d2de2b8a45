"""Scorers of completions. A failure is null and is counted, never zero."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

from pipeline.evaluation.samples.records import Completion, Scores

# Raised by a scorer over a row that it cannot score; anything else is a defect with its traceback.
_FAILURES = (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError)


class Scorer(Protocol):
    """A judge of completions, with what identifies it."""

    @property
    def name(self) -> str:
        """Short and stable: the key of its scores in samples.jsonl."""

    @property
    def version(self) -> str:
        """The version of the package or the artefact."""

    @property
    def sha256(self) -> str:
        """The hash of the weights, the word list or the source that decides."""

    @property
    def threshold(self) -> float | None:
        """The main score from which a row counts as positive."""

    def score(self, rows: Sequence[Completion]) -> list[Scores]:
        """Return metrics by name for each row, {} where it does not apply, None where it failed."""


def scored(rows: Sequence[Completion], scorers: Sequence[Scorer]) -> list[Completion]:
    """Return the rows with the scores and the identity of every scorer, in the same order.

    A scorer that applies to no row leaves no trace.
    """
    result = list(rows)
    for scorer in scorers:
        identity = {
            "version": scorer.version,
            "sha256": scorer.sha256,
            "threshold": scorer.threshold,
        }
        scores = _scores_of(scorer, result)
        if all(score == {} for score in scores):
            continue
        result = [
            dataclasses.replace(
                row,
                scores={**row.scores, scorer.name: score},
                score_meta={**row.score_meta, scorer.name: identity},
            )
            for row, score in zip(result, scores, strict=True)
        ]
    return result


def _scores_of(scorer: Scorer, rows: Sequence[Completion]) -> list[Scores]:
    """Scores of all rows; where the scorer raises, halves are tried until bad rows stand alone."""
    if not rows:
        return []
    try:
        scores = scorer.score(rows)
    except _FAILURES:
        if len(rows) == 1:
            return [None]
        middle = len(rows) // 2
        return _scores_of(scorer, rows[:middle]) + _scores_of(scorer, rows[middle:])
    assert len(scores) == len(rows), f"{scorer.name}: {len(scores)} scores, {len(rows)} rows"
    return [_finite(score) for score in scores]


def _finite(score: Scores) -> Scores:
    if score is None:
        return None
    return {
        name: float(value) if value is not None and math.isfinite(value) else None
        for name, value in score.items()
    }
