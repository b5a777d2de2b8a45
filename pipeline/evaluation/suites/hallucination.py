"""Closed-domain hallucination: what a response says that its passage does not, and declining.

Without a judge the estimate is lexical: numbers and names that the prompt does not hold. That finds
invented particulars, not wrong answers copied from the passage. On BEGIN's three development sets
(Dziri et al. 2022) it flags 0 to 2 % of attributable responses and 6 to 15 % of the others (AUROC
.52 to .57): what it finds is real, most it misses. Novel bigrams reach .86 to .91 there, but they
measure abstraction as soon as models differ in style, so they stand beside the rate, not in it.
Abstention on questions marked answerable or not needs no model at all.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from pathlib import Path

from pipeline.config.evaluation import EvaluationConfig
from pipeline.evaluation.generate import TEST
from pipeline.evaluation.samples.records import Completion, Scores
from pipeline.evaluation.samples.tables import Better, Quantity, Table, tabulate
from pipeline.evaluation.scorers.gold import GOLD, GoldScorer
from pipeline.evaluation.scorers.scorer import Scorer
from pipeline.evaluation.scorers.wording import abstains
from pipeline.evaluation.suites.suite import Inputs

LEXICAL = "lexical support"
SUITE = "hallucination"
_WORDS_FOR_NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
)  # fmt: skip
_NUMBERS = {word: str(value) for value, word in enumerate(_WORDS_FOR_NUMBERS)}
_SENTENCE = re.compile(r"(?<=[.!?:])\s+|\n+")
_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
Measure = tuple[str, Better, str, Callable[[Completion], float | None]]


class LexicalSupport:
    """Whether a response holds numbers or names that its prompt and passage do not."""

    name = LEXICAL
    version = "1"
    threshold = 0.5

    def __init__(self, closed_domain: Collection[str]) -> None:
        """Rows of these categories are checked; it has no say about others."""
        self.closed_domain = frozenset(closed_domain)

    @property
    def sha256(self) -> str:
        """Of this file."""
        return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()

    def score(self, rows: Sequence[Completion]) -> list[Scores]:
        """`unsupported` 0 or 1, and `novel_bigrams`, the share that the source does not hold."""
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
    """Numbers, and words that are capitalised inside a sentence, that the source does not hold.

    The first word of a sentence is a name only if it is capitalised inside another one too: of the
    response or of the source. "two" supports "2".
    """
    held = {_same(word) for word in _WORD.findall(source)}
    inner = _inner_capitals(source) | _inner_capitals(response)
    found = []
    for word in _WORD.findall(response):
        particular = word[0].isdigit() or word.lower() in _NUMBERS or word in inner
        if particular and _same(word) not in held and word not in found:
            found.append(word)
    return found


def novel_bigrams(source: str, response: str) -> float:
    """Share of the response's word pairs that the source does not hold; 0 if there is no pair."""
    pairs = _bigrams(response)
    return len(pairs - _bigrams(source)) / len(pairs) if pairs else 0.0


def hallucination_scorers(inputs: Inputs) -> list[Scorer]:
    """The gold judge where it has a say, the lexical estimate, and the user's classifiers."""
    config = inputs.config
    found: list[Scorer] = [GoldScorer(), LexicalSupport(config.closed_domain)]
    for chosen in config.entailment:
        from pipeline.evaluation.scorers.classifier import EntailmentScorer

        found.append(EntailmentScorer(chosen, config.closed_domain))
    return found


def hallucination_suite_tables(
    rows: Sequence[Completion], models: Sequence[str], config: EvaluationConfig
) -> list[Table]:
    """The same over the answers to test prompts."""
    tested = [row for row in rows if row.suite == TEST]
    return hallucination_tables(tested, models, closed_domain=config.closed_domain)


def hallucination_notes(rows: Sequence[Completion], config: EvaluationConfig) -> list[str]:
    """What must be said where words alone decide."""
    closed = [row for row in rows if row.category in config.closed_domain]
    if not closed or any(row.has(GOLD, "hallucinated") for row in closed):
        return []
    return ["hallucination is estimated by words alone and grows with abstraction"]


def hallucination_tables(
    rows: Sequence[Completion], models: Sequence[str], *, closed_domain: Collection[str]
) -> list[Table]:
    """The headline rate and its parts over closed-domain rows that were scored."""
    closed = [row for row in rows if row.category in closed_domain]
    judged = bool(closed) and all(row.has(GOLD, "hallucinated") for row in closed)
    found = []
    for metric, better, scorer, of in _measures(judged):
        kept = [row for row in closed if _applies(metric, row)]
        found.append(tabulate(kept, Quantity(SUITE, metric, "all", scorer, better), of, models))
    for name in dict.fromkeys(name for row in closed for name in row.scores):
        if any(row.has(name, "not_entailed") for row in closed):
            found += _entailed(closed, models, name)
    for category in sorted({row.category for row in closed if row.category}):
        kept = [row for row in closed if row.category == category]
        quantity = Quantity(SUITE, "hallucination", category, GOLD if judged else LEXICAL, "lower")
        found.append(tabulate(kept, quantity, _hallucinated(judged), models))
    return [table for table in found if table.value_NM.size]


def _entailed(rows: Sequence[Completion], models: Sequence[str], scorer: str) -> list[Table]:
    """The share that a classifier does not find supported; each classifier is a part."""
    kept = [row for row in rows if row.has(scorer, "not_entailed")]
    quantity = Quantity(SUITE, "not_entailed", scorer, scorer, "lower")
    return [tabulate(kept, quantity, lambda row: row.score(scorer, "not_entailed"), models)]


def _applies(metric: str, row: Completion) -> bool:
    match metric:
        case "answered_unanswerable":
            return row.answerable is False
        case "false_abstention" | "correct_answerable":
            return row.answerable is True
        case _:
            return True


def _measures(judged: bool) -> list[Measure]:
    def unsupported_rate(row: Completion) -> float | None:
        return row.score(LEXICAL, "unsupported")

    def answered(row: Completion) -> float | None:
        declined = _abstained(row, judged)
        return None if declined is None else 1 - declined

    declining = GOLD if judged else "phrases"
    found: list[Measure] = [
        ("hallucination", "lower", GOLD if judged else LEXICAL, _hallucinated(judged)),
        ("answered_unanswerable", "lower", declining, answered),
        ("false_abstention", "lower", declining, lambda row: _abstained(row, judged)),
        ("unsupported", "lower", LEXICAL, unsupported_rate),
        ("novel_bigrams", None, LEXICAL, lambda row: row.score(LEXICAL, "novel_bigrams")),
    ]
    if judged:
        found += [
            ("hallucinated", "lower", GOLD, lambda row: row.score(GOLD, "hallucinated")),
            ("correct_answerable", "higher", GOLD, lambda row: row.score(GOLD, "correct")),
        ]
    return found


def _hallucinated(judged: bool) -> Callable[[Completion], float | None]:
    """A made-up fact, or any answer to a question that the passage does not answer."""

    def of(row: Completion) -> float | None:
        made_up = row.score(GOLD, "hallucinated") if judged else row.score(LEXICAL, "unsupported")
        declined = _abstained(row, judged)
        if made_up is None or declined is None:
            return None
        return max(made_up, float(row.answerable is False and not declined))

    return of


def _abstained(row: Completion, judged: bool) -> float | None:
    return row.score(GOLD, "abstained") if judged else float(abstains(row.completion))


def _source(row: Completion) -> str:
    before = (turn.content for turn in row.history)
    return "\n".join([*before, row.context or "", row.prompt])


def _same(word: str) -> str:
    """One form for a word: lower case, digits for number words, no thousands separators."""
    lower = word.lower().removesuffix("'s").removesuffix("\u2019s")
    return _NUMBERS.get(lower, lower.replace(",", "") if lower[0].isdigit() else lower)


def _inner_capitals(text: str) -> set[str]:
    """Capitalised words that do not begin their sentence; "I" is no name."""
    found = set()
    for sentence in _SENTENCE.split(text):
        words = _WORD.findall(sentence)[1:]
        found |= {word for word in words if word[0].isupper() and word != "I"}
    return found


def _bigrams(text: str) -> set[tuple[str, str]]:
    words = [_same(word) for word in _WORD.findall(text)]
    return set(pairwise(words))
