"""Entailment of a response by its passage, sentence by sentence, by any NLI classifier."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.config.evaluation import EntailmentConfig
from pipeline.evaluation.samples.records import Completion, Scores
from pipeline.evaluation.scorers.classifier import SequenceClassifier
from pipeline.evaluation.scorers.style import abstains

NLI = "nli "  # such a scorer's name begins so
SUPPORTED = ("entailment", "entails", "entailed", "consistent", "supported", "label_1")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


class EntailmentScorer:
    """`support`, the lowest chance of a sentence, and `not_entailed`, 1 where it is too low."""

    def __init__(self, config: EntailmentConfig, closed_domain: Collection[str]) -> None:
        """Load the model; it applies to rows of these categories that have a passage."""
        self.config = config
        self.closed_domain = frozenset(closed_domain)
        self.classifier = SequenceClassifier.load(config.model, None, config.max_tokens)
        self.column = self.classifier.column(config.label, SUPPORTED, "supported")
        self.name = f"{NLI}{Path(config.model).name}"
        self.version, self.sha256 = self.classifier.version(), self.classifier.sha256()
        self.threshold = config.threshold

    def score(self, rows: Sequence[Completion]) -> list[Scores]:
        """Return the scores of each row, {} where there is no passage to entail it."""
        claims = [(index, text) for index, row in enumerate(rows) for text in self._claims(row)]
        lowest: dict[int, float] = {}
        for start in range(0, len(claims), self.config.batch_size):
            batch = claims[start : start + self.config.batch_size]
            chance_BC = self.classifier.probabilities(
                [rows[index].context or "" for index, _ in batch], [text for _, text in batch]
            )
            for (index, _), chance in zip(batch, chance_BC[:, self.column].tolist(), strict=True):
                lowest[index] = min(chance, lowest.get(index, 1.0))
        return [
            self._scores(lowest.get(index, 1.0)) if self._applies(row) else {}
            for index, row in enumerate(rows)
        ]

    def _scores(self, support: float) -> Scores:
        return {"support": support, "not_entailed": float(support < self.config.threshold)}

    def _applies(self, row: Completion) -> bool:
        return bool(row.context) and row.category in self.closed_domain

    def _claims(self, row: Completion) -> list[str]:
        if not self._applies(row) or abstains(row.completion):
            return []
        return [text for text in _SENTENCE.split(row.completion.strip()) if text.strip()]
