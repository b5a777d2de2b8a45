"""The quickstart's gold judge as a scorer: truth by construction, for its invented world alone."""

import hashlib
import inspect
from collections.abc import Sequence

from pipeline.evaluation.samples.records import WORLD, Completion, Scores
from pipeline.quickstart import judge as quickstart

GOLD = "gold judge"


class GoldScorer:
    """Judges each response to a prompt of the invented world; does not apply to other prompts."""

    name, version, threshold = GOLD, "quickstart", None

    @property
    def sha256(self) -> str:
        """The hash of the judge's source."""
        return hashlib.sha256(inspect.getsource(quickstart).encode()).hexdigest()

    def score(self, rows: Sequence[Completion]) -> list[Scores]:
        """Return `gold` (about -2 to 1) and, as 0 or 1, each of the judgements behind it."""
        return [_scores(row) if WORLD in row.prompt_extra else {} for row in rows]


def _scores(row: Completion) -> Scores:
    judgement = quickstart.judge(row.prompt_extra[WORLD], row.completion, row.ended)
    return {
        "gold": judgement.score,
        "correct": float(judgement.correct),
        "hallucinated": float(judgement.hallucinated),
        "abstained": float(judgement.abstained),
        "rude": float(judgement.rude),
        "rambling": float(judgement.rambling),
    }
