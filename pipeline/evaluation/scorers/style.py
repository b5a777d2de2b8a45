"""Length and abstention, which move scores without merit, and exact match with right answers.

Exact match and F1 of words, against the best of several right answers, are the classic measures of
short answers (Rajpurkar et al. 2016, 2018). Where there is no right answer, abstaining is right.
"""

import hashlib
import re
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.evaluation.samples.records import Completion, Scores

STYLE, ANSWERS, PHRASES = "counting", "reference answers", "phrases"
_ARTICLES = re.compile(r"\b(a|an|the)\b")
# "The text does not say.", "Not in background." (SQuAD in Ouyang et al. 2022), "I have no comment".
_ABSTENTIONS = re.compile(
    r"\b(?:"
    r"(?:does|do|did)(?: not|n.t) (?:say|state|mention|specify)"
    r"|(?:is|are|was|were)(?: not|n.t) (?:stated|given|mentioned|specified|provided)"
    r"|not in (?:the )?(?:background|text|passage|context)"
    r"|no (?:comment|answer|information)"
    r"|(?:not|n.t) enough information"
    r"|(?:can(?:not|.t| not)|could(?: not|n.t)|unable to) (?:be )?(?:answer|tell|determine|find)"
    r"|(?:do(?: not|n.t)) know"
    r"|unanswerable|unknown"
    r")",
    re.IGNORECASE,
)


def abstains(response: str) -> bool:
    """Return whether a response says, by one of the listed phrases, that it has no answer."""
    return _ABSTENTIONS.search(response) is not None


def normalised(response: str) -> str:
    """Lower case, without outer punctuation and repeated white space: equal means same words."""
    return " ".join(response.lower().split()).strip(" .,;:!?\"'")


class Style:
    """Words, refusals and empty answers."""

    name, version, threshold = STYLE, "1", None

    @property
    def sha256(self) -> str:
        """The hash of this file."""
        return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()

    def score(self, rows: Sequence[Completion]) -> list[Scores]:
        """Return `words`; `refusal`, `no_comment` and `empty` as 0 or 1."""
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
    """Exact match and F1 of rows that come with right answers; does not apply to others."""

    name = ANSWERS

    def score(self, rows: Sequence[Completion]) -> list[Scores]:
        """Return `exact_match` and `f1`, each the best over the alternatives."""
        return [
            answer_scores(row.completion, row.prompt_extra["reference"])
            if isinstance(row.prompt_extra.get("reference"), list)
            else {}
            for row in rows
        ]


def answer_scores(answer: str, references: Sequence[str]) -> dict[str, float | None]:
    """Return SQuAD's measures. Without any reference, 1 for an abstention or an empty answer."""
    if not references:
        abstained = float(not words_of(answer) or abstains(answer))
        return {"exact_match": abstained, "f1": abstained}
    return {
        "exact_match": max(float(words_of(answer) == words_of(each)) for each in references),
        "f1": max(word_f1(answer, each) for each in references),
    }


def word_f1(answer: str, reference: str) -> float:
    """Return the harmonic mean of precision and recall over words; of two empty texts 1."""
    answered, right = Counter(words_of(answer)), Counter(words_of(reference))
    if not answered or not right:
        return float(answered == right)
    return 2 * (answered & right).total() / (answered.total() + right.total())


def words_of(text: str) -> list[str]:
    """Return SQuAD's normal form: lower case, no punctuation, no articles."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return _ARTICLES.sub(" ", bare).split()
