"""What a scorer is, and how rows get their scores. A failure is null and is counted, never zero."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

from pipeline.evaluation.samples.records import Completion, Scores

# What a scorer may raise over a row it cannot read; anything else is a defect and keeps its trace.
_FAILURES = (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError)


class Scorer(Protocol):
    """Judges completions. `threshold` is where its main score counts as positive, if anywhere."""

    @property
    def name(self) -> str:
        """Short and stable: the key of its scores in samples.jsonl."""

    @property
    def version(self) -> str:
        """Of the package or the artefact."""

    @property
    def sha256(self) -> str:
        """Of the weights, the word list or the source that decides."""

    @property
    def threshold(self) -> float | None:
        """Where the main score counts as positive."""

    def score(self, rows: Sequence[Completion]) -> list[Scores]:
        """One entry a row: metrics by name, {} where it does not apply, None where it failed."""


def scored(rows: Sequence[Completion], scorers: Sequence[Scorer]) -> list[Completion]:
    """The rows with the scores and the identity of every scorer added, in the same order.

    A scorer that has no say about any row leaves no trace.
    """
    result = list(rows)
    for scorer in scorers:
        identity = {
            "version": scorer.version,
            "sha256": scorer.sha256,
            "threshold": scorer.threshold,
        }
        found = _scores_of(scorer, result)
        if all(score == {} for score in found):
            continue
        result = [
            dataclasses.replace(
                row,
                scores={**row.scores, scorer.name: score},
                score_meta={**row.score_meta, scorer.name: identity},
            )
            for row, score in zip(result, found, strict=True)
        ]
    return result


def _scores_of(scorer: Scorer, rows: Sequence[Completion]) -> list[Scores]:
    """Scores of all rows; where the scorer raises, halves are tried until bad rows stand alone."""
    if not rows:
        return []
    try:
        found = scorer.score(rows)
    except _FAILURES:
        if len(rows) == 1:
            return [None]
        middle = len(rows) // 2
        return _scores_of(scorer, rows[:middle]) + _scores_of(scorer, rows[middle:])
    if len(found) != len(rows):
        raise AssertionError(f"{scorer.name} gave {len(found)} scores for {len(rows)} rows")
    return [_finite(score) for score in found]


def _finite(score: Scores) -> Scores:
    if score is None:
        return None
    return {
        name: float(value) if value is not None and math.isfinite(value) else None
        for name, value in score.items()
    }
