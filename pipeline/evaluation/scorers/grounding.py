"""Support of a response by its passage: by words alone, or by any NLI classifier.

Words detect invented numbers and names, not wrong answers copied from the passage. On BEGIN's three
development sets (Dziri et al. 2022) they flag 0 to 2 % of attributable responses and 6 to 15 % of
the others (AUROC .52 to .57): what is flagged is real, most is missed. Novel bigrams reach .86 to
.91 there, but they measure abstraction as soon as models differ in style, so they stand beside the
rate, not in it.
"""

import hashlib
import re
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path

from pipeline.config.evaluation import EntailmentConfig
from pipeline.evaluation.samples.records import Completion, Scores
from pipeline.evaluation.scorers.classifier import SequenceClassifier
from pipeline.evaluation.scorers.style import abstains

LEXICAL = "lexical support"
ENTAILED = ("entailment", "entails", "entailed", "consistent", "supported", "label_1")  # labels
_NUMBERS = {
    **{"zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"},
    **{"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"},
}
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_CLAUSE = re.compile(r"(?<=[.!?:])\s+|\n+")
_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:['\u2019][^\W\d_]+)*")


class LexicalSupport:
    """A scorer of numbers and names in a response that its prompt and passage do not hold."""

    name, version, threshold = LEXICAL, "1", 0.5

    def __init__(self, closed_domain: Collection[str]) -> None:
        """Take the categories of rows that are checked; it does not apply to others."""
        self.closed_domain = frozenset(closed_domain)

    @property
    def sha256(self) -> str:
        """The hash of this file."""
        return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()

    def score(self, rows: Sequence[Completion]) -> list[Scores]:
        """Return `unsupported`, 0 or 1, and `novel_bigrams`, the share not in the source."""
        return [
            {
                "unsupported": float(bool(unsupported(_source(row), row.completion))),
                "novel_bigrams": novel_bigrams(_source(row), row.completion),
            }
            if row.category in self.closed_domain
            else {}
            for row in rows
        ]


def unsupported(source: str, response: str) -> list[str]:
    """Return numbers, and words capitalised inside a sentence, that the source does not hold.

    The first word of a sentence is a name only if it is capitalised inside another one too: of the
    response or of the source. "two" supports "2".
    """
    held = {_same(word) for word in _WORD.findall(source)}
    names = _inner_capitals(source) | _inner_capitals(response)
    particulars = (
        word
        for word in _WORD.findall(response)
        if word[0].isdigit() or word.lower() in _NUMBERS or word in names
    )
    return list(dict.fromkeys(word for word in particulars if _same(word) not in held))


def novel_bigrams(source: str, response: str) -> float:
    """Return the share of the response's word pairs not in the source; 0 if there is no pair."""
    pairs = _bigrams(response)
    return len(pairs - _bigrams(source)) / len(pairs) if pairs else 0.0


def _source(row: Completion) -> str:
    turns = (turn.content for turn in row.history)
    return "\n".join([*turns, row.context or "", row.prompt])


def _same(word: str) -> str:
    """One form for a word: lower case, digits for number words, no thousands separators."""
    lower = word.lower().removesuffix("'s").removesuffix("\u2019s")
    return _NUMBERS.get(lower, lower.replace(",", "") if lower[0].isdigit() else lower)


def _inner_capitals(text: str) -> set[str]:
    """Capitalised words that do not begin their sentence; "I" is no name."""
    words = (word for clause in _CLAUSE.split(text) for word in _WORD.findall(clause)[1:])
    return {word for word in words if word[0].isupper() and word != "I"}


def _bigrams(text: str) -> set[tuple[str, str]]:
    return set(pairwise(_same(word) for word in _WORD.findall(text)))


class EntailmentScorer:
    """`support`, the lowest chance of a sentence, and `not_entailed`, 1 where it is too low."""

    def __init__(self, config: EntailmentConfig, closed_domain: Collection[str]) -> None:
        """Load the model; it applies to rows of these categories that have a passage."""
        self.config = config
        self.closed_domain = frozenset(closed_domain)
        self.classifier = SequenceClassifier.load(config.model, None, config.max_tokens)
        self.column = self.classifier.column(config.label, ENTAILED, "supported")
        self.name = f"nli {Path(config.model).name}"
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
