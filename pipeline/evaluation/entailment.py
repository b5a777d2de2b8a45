"""Whether a passage entails what a response says, by a classifier that the user names.

Any model of (premise, hypothesis) pairs with a label for entailment: NLI models, MiniCheck's
classifiers, or one of one's own. A response is as well supported as its worst sentence (Laban et
al. 2022, SummaC, "zero-shot", with the whole passage as premise). Declining claims nothing.
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.evaluation.classifier import SequenceClassifier
from pipeline.evaluation.samples import Completion, Scores
from pipeline.evaluation.scorer_config import EntailmentConfig
from pipeline.evaluation.wording import abstains

NLI = "nli "  # such a scorer's name begins so
SUPPORTED = ("entailment", "entails", "entailed", "consistent", "supported", "label_1")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


class EntailmentScorer:
    """`support`, the lowest chance of a sentence, and `not_entailed`, 1 where it is too low."""

    def __init__(self, config: EntailmentConfig, closed_domain: Collection[str]) -> None:
        """Load the model; it has a say about rows of these categories that have a passage."""
        self.config = config
        self.closed_domain = frozenset(closed_domain)
        self.inside = SequenceClassifier.load(config.model, None, config.max_tokens)
        self.place = self.inside.column(config.label, SUPPORTED, "supported")
        self.name = f"{NLI}{Path(config.model).name}"
        self.version, self.sha256 = self.inside.version(), self.inside.sha256()
        self.threshold = config.threshold

    def score(self, rows: Sequence[Completion]) -> list[Scores]:
        """One entry a row, {} where there is no passage to hold it to."""
        claims = [(place, text) for place, row in enumerate(rows) for text in self._claims(row)]
        lowest: dict[int, float] = {}
        for start in range(0, len(claims), self.config.batch_size):
            batch = claims[start : start + self.config.batch_size]
            chance_BC = self.inside.probabilities(
                [rows[place].context or "" for place, _ in batch], [text for _, text in batch]
            )
            for (place, _), chance in zip(batch, chance_BC[:, self.place].tolist(), strict=True):
                lowest[place] = min(chance, lowest.get(place, 1.0))
        return [self._scores(row, lowest.get(place)) for place, row in enumerate(rows)]

    def _applies(self, row: Completion) -> bool:
        return bool(row.context) and row.category in self.closed_domain

    def _claims(self, row: Completion) -> list[str]:
        if not self._applies(row) or abstains(row.completion):
            return []
        return [text for text in _SENTENCE.split(row.completion.strip()) if text.strip()]

    def _scores(self, row: Completion, support: float | None) -> Scores:
        if not self._applies(row):
            return {}
        if support is None:
            return {"support": 1.0, "not_entailed": 0.0}
        return {"support": support, "not_entailed": float(support < self.config.threshold)}
