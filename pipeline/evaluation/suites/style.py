"""What stands beside every score, because it moves scores without merit: length and declining.

Also the classic measures of short answers (Rajpurkar et al. 2016, 2018): exact match and F1 of
words against the best of several right answers. Where there is no right answer, declining is right.
"""

import hashlib
import re
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.evaluation.samples.records import Completion, Scores
from pipeline.evaluation.scorers.wording import abstains

STYLE, ANSWERS = "counting", "reference answers"
_ARTICLES = re.compile(r"\b(a|an|the)\b")


class Style:
    """Words, refusals and empty answers."""

    name, version, threshold = STYLE, "1", None

    @property
    def sha256(self) -> str:
        """Of this file."""
        return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()

    def score(self, rows: Sequence[Completion]) -> list[Scores]:
        """`words`; `refusal`, `no_comment` and `empty` as 0 or 1."""
        return [
            {
                "words": float(len(row.completion.split())),
                "refusal": float(abstains(row.completion)),
                "no_comment": float("no comment" in row.completion.lower()),
                "empty": float(not row.completion.strip()),
            }
            for row in rows
        ]


class ReferenceAnswers(Style):
    """Exact match and F1 of rows that come with right answers; no say about others."""

    name = ANSWERS

    def score(self, rows: Sequence[Completion]) -> list[Scores]:
        """`exact_match` and `f1`, each the best over the alternatives."""
        return [
            answer_scores(row.completion, row.prompt_extra["reference"])
            if isinstance(row.prompt_extra.get("reference"), list)
            else {}
            for row in rows
        ]


def answer_scores(answer: str, references: Sequence[str]) -> dict[str, float | None]:
    """SQuAD's measures. Without any reference, 1 where the answer declines or is empty."""
    if not references:
        declined = float(not words_of(answer) or abstains(answer))
        return {"exact_match": declined, "f1": declined}
    return {
        "exact_match": max(float(words_of(answer) == words_of(each)) for each in references),
        "f1": max(word_f1(answer, each) for each in references),
    }


def word_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words; of two empty texts 1."""
    said, right = Counter(words_of(answer)), Counter(words_of(reference))
    if not said or not right:
        return float(said == right)
    shared = (said & right).total()
    return 2 * shared / (said.total() + right.total())


def words_of(text: str) -> list[str]:
    """SQuAD's normal form: lower case, no punctuation, no articles."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return _ARTICLES.sub(" ", bare).split()
