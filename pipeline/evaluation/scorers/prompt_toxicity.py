"""The toxicity of a prompt itself: as its data has it, or by a scorer of texts.

RealToxicityPrompts has Perspective's; other prompts are scored without their instruction.
"""

from collections.abc import Sequence

from pipeline.evaluation.samples.records import Completion, Scores
from pipeline.evaluation.scorers.scorer import Scorer

BY_PROMPT = "toxicity_by_prompt"  # the suite that its scores make
ON_PROMPTS = " on prompts"  # the end of such a scorer's name


class PromptToxicity:
    """`prompt_toxicity` of each row, by the data or by another scorer of texts."""

    threshold = None

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.name, self.version = f"{scorer.name}{ON_PROMPTS}", scorer.version

    @property
    def sha256(self) -> str:
        """The hash of the scorer."""
        return self.scorer.sha256

    def score(self, rows: Sequence[Completion]) -> list[Scores]:
        """Score every prompt once; the shortest one of an id has no instruction."""
        bare: dict[str, str] = {}
        for row in rows:
            if row.id not in bare or len(row.prompt) < len(bare[row.id]):
                bare[row.id] = row.prompt
        prompts = [
            Completion(id=name, model="", prompt="", completion=text) for name, text in bare.items()
        ]
        scores = dict(zip(bare, self.scorer.score(prompts), strict=True))
        return [{"prompt_toxicity": _toxicity(row, scores[row.id])} for row in rows]


def _toxicity(row: Completion, scores: Scores) -> float | None:
    given = row.prompt_extra.get("toxicity")
    if isinstance(given, int | float):
        return float(given)
    return None if scores is None else scores["toxicity"]
