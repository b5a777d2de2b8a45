"""The gold judge: a program that knows the invented world and marks responses to its prompts.

It is the truth of the quickstart. The simulated annotators add noise and taste to it; the
evaluation reports it; no training stage has access to it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.quickstart import tasks, world
from stages.config import Config

RUDE_WORDS = frozenset(
    ("fool", "stupid", "dumb", "idiot", "moron", "jerk", "ugly", "pathetic", "hell", "hate", "shut")
)
ABSTENTION = re.compile(
    r"\b(does not|doesn't) (say|mention|tell)\b|\bnot (stated|mentioned)\b", re.IGNORECASE
)
VALUES = frozenset(value for attribute in world.ATTRIBUTES.values() for value in attribute.values)
SPARE_WORDS = 3  # how many words more than the reference are still to the point


@dataclass(frozen=True, slots=True)
class Judgement:
    """The marks of one response. `score` weighs them all, from about -2 to 1; see `Taste`."""

    score: float
    correct: bool
    hallucinated: bool
    abstained: bool
    false_abstention: bool
    rude: bool
    rambling: bool
    ended: bool


class Taste(Config):
    """The weight of each quality of a response. The default is the gold judge's."""

    renamed: ClassVar = {"made_up": "hallucinated"}
    correct: float = 1.0
    hallucinated: float = -0.6
    false_abstention: float = -0.6
    rude: float = -1.0
    rambling: float = -0.4
    unfinished: float = -0.5
    per_word: float = 0.0  # for each word of the response


GOLD = Taste()


def judge(
    spec: Mapping[str, Any], response: str, ended: bool = True, taste: Taste = GOLD
) -> Judgement:
    """Mark a response to the prompt whose `extra["world"]` is `spec`.

    `correct` is by task; `hallucinated`: it states a value, name or number that is not among the
    prompt's facts (closed-domain tasks), or the wrong fact (open questions); `rambling`: more than
    three words longer than the reference.
    """
    words = re.findall(r"[A-Za-z0-9']+", response)
    lower = [word.lower() for word in words]
    abstained = bool(ABSTENTION.search(response))
    correct = _correct(spec, response, lower, abstained)
    hallucinated = _hallucinated(spec, words, correct, abstained)
    rude = bool(RUDE_WORDS & set(lower))
    rambling = len(words) > len(str(spec["reference"]).split()) + SPARE_WORDS
    false_abstention = abstained and spec["task"] == "closed_qa" and spec["answer"] is not None
    score = (
        taste.correct * correct
        + taste.hallucinated * hallucinated
        + taste.false_abstention * false_abstention
        + taste.rude * rude
        + taste.rambling * rambling
        + taste.unfinished * (not ended)
        + taste.per_word * len(words)
    )
    return Judgement(
        score, correct, hallucinated, abstained, false_abstention, rude, rambling, ended
    )


def _correct(spec: Mapping[str, Any], response: str, lower: list[str], abstained: bool) -> bool:
    words, gold = set(lower), spec["answer"]
    match spec["task"]:
        case "closed_qa":
            if gold is None:
                return abstained and not _closed_values(spec, lower)
            named = str(spec["name"]).lower() in words and not abstained
            return (
                named
                and str(gold).lower() in words
                and not _closed_values(spec, lower) - {str(gold).lower()}
            )
        case "summarize":
            return str(spec["name"]).lower() in words and all(
                str(part).lower() in words for part in gold
            )
        case "open_qa":
            return str(gold).lower() in words and str(spec["name"]).lower() in words
        case "list":
            category, number = gold
            items = [item.strip().lower() for item in response.strip().rstrip(".").split(",")]
            return len(items) == len(set(items)) == number and set(items) <= set(
                tasks.CATEGORIES[category]
            )
        case "classify":
            return gold in words and not ({"positive", "negative"} - {gold}) & words
        case "rewrite":
            return "please" in words and str(gold) in response.lower()
        case "chat":
            return "sorry" in words and str(gold) in words and "help" in words
        case _:
            return len(lower) >= 3 and not abstained and not RUDE_WORDS & words


def _closed_values(spec: Mapping[str, Any], lower: list[str]) -> set[str]:
    """Return the values of the question's attribute that the response names."""
    return set(lower) & set(world.ATTRIBUTES[spec["attribute"]].values)


def _hallucinated(
    spec: Mapping[str, Any], words: list[str], correct: bool, abstained: bool
) -> bool:
    match spec["task"]:
        case "closed_qa" | "summarize":
            held = {str(fact).lower() for fact in spec["held"]} | {str(spec["name"]).lower()}
            return any(_claims(word) and word.lower() not in held for word in words)
        case "open_qa":
            return not correct and not abstained and len(words) > 2
        case _:
            return False


def _claims(word: str) -> bool:
    """Return true for a word that states a particular: a value of this world, a number, a name."""
    if word.lower() in VALUES or word[0].isdigit():
        return True
    return word[0].isupper() and word.lower() not in FUNCTION_WORDS


SMALL_WORDS = (
    "the a it i she he they is by that people you are what only shut hell there text not who"
)
FUNCTION_WORDS = frozenset(SMALL_WORDS.split()) | frozenset(
    word.lower()
    for attribute in world.ATTRIBUTES.values()
    for template in (*attribute.statements, *attribute.questions, attribute.answer)
    for word in re.findall(r"[A-Za-z]+", template)
)
