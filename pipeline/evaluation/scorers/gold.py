"""The quickstart's judge as a scorer: truth by construction, for prompts of its world alone."""

import hashlib
import inspect
from collections.abc import Sequence

from pipeline.evaluation.samples.records import Completion, Scores
from pipeline.quickstart import judge as quickstart

GOLD = "gold judge"
WORLD = "world"  # the key of a prompt's extra fields that the judge reads


class GoldScorer:
    """Marks each response to a prompt of the invented world; has no say about other prompts."""

    name = GOLD
    version = "quickstart"
    threshold = None

    @property
    def sha256(self) -> str:
        """Of the judge's source."""
        return hashlib.sha256(inspect.getsource(quickstart).encode()).hexdigest()

    def score(self, rows: Sequence[Completion]) -> list[Scores]:
        """`gold` (about -2 to 1) and, as 0 or 1, each of the judgements behind it."""
        return [_marks(row) if WORLD in row.prompt_extra else {} for row in rows]


def _marks(row: Completion) -> Scores:
    found = quickstart.judge(row.prompt_extra[WORLD], row.completion, row.ended)
    return {
        "gold": found.score,
        "correct": float(found.correct),
        "hallucinated": float(found.hallucinated),
        "abstained": float(found.abstained),
        "rude": float(found.rude),
        "rambling": float(found.rambling),
    }
