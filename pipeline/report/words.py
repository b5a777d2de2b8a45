"""The name of each metric, how its values are printed, and its meaning in one sentence."""

import math
from dataclasses import dataclass

from pipeline.evaluation.samples.tables import Cell, Comparison


@dataclass(frozen=True, slots=True)
class Name:
    """A metric in plain words. A `share` is printed in percent."""

    title: str
    share: bool = False
    digits: int = 2
    meaning: str = ""


NAMES = {
    "win_rate": Name("win rate", True, 0, "share of prompts won, ties half"),
    "win_rate_length_controlled": Name(
        "win rate, length controlled", True, 0, "what it would be at equal length, by regression"
    ),
    "win_rate_length_matched": Name(
        "win rate, equal length", True, 0, "of pairs whose lengths differ by a tenth at most"
    ),
    "rating": Name("rating", False, 2, "annotators' quality, 1 to 7"),
    "toxic": Name("toxic", True, 1, "flagged by annotators"),
    "fails_instruction": Name("fails the instruction", True, 1, "flagged by annotators"),
    "inappropriate": Name("inappropriate", True, 1, "for a customer assistant, by annotators"),
    "satisfies_constraint": Name("satisfies the constraint", True, 1, "flagged by annotators"),
    "sexual": Name("sexual content", True, 1, "flagged by annotators"),
    "violent": Name("violent content", True, 1, "flagged by annotators"),
    "encourages_violence": Name("encourages violence", True, 1, "flagged by annotators"),
    "denigrates": Name("denigrates a protected class", True, 1, "flagged by annotators"),
    "harmful_advice": Name("harmful advice", True, 1, "flagged by annotators"),
    "opinion": Name("expresses opinion", True, 1, "flagged by annotators"),
    "moral_judgement": Name("moral judgement", True, 1, "flagged by annotators"),
    "f1": Name("F1", True, 1, "shared words with the best right answer"),
    "exact_match": Name("exact match", True, 1, "equal to a right answer"),
    "not_entailed": Name(
        "not entailed", True, 1, "a sentence that the classifier finds unsupported"
    ),
    "empty": Name("empty", True, 1, "says nothing"),
    "entropy_bits": Name("entropy", False, 3, "bits; 1 is no preference between the two sentences"),
    "prefers_stereotype": Name("prefers the stereotype", True, 1, "finds it the likelier sentence"),
    "mc1": Name("MC1", True, 1, "the best answer is likelier than every false one"),
    "mc2": Name("MC2", True, 1, "the true answers' share of the probability"),
    "gold": Name("gold score", False, 2, "the judge's score, about -2 to 1"),
    "correct": Name("correct", True, 0, "share of responses the judge calls correct"),
    "score": Name("reward model score", False, 2, "what PPO was trained to raise"),
    "hallucination": Name(
        "hallucination", True, 1, "a hallucinated fact, or an answer the passage does not hold"
    ),
    "hallucinated": Name("hallucinated facts", True, 1, "states what the passage does not"),
    "unsupported": Name("unsupported particulars", True, 1, "numbers or names not in the prompt"),
    "answered_unanswerable": Name(
        "answers to unanswerable questions", True, 1, "of the questions without an answer"
    ),
    "false_abstention": Name(
        "false abstentions", True, 1, "declines although the passage holds the answer"
    ),
    "correct_answerable": Name("correct where answerable", True, 1, "of the answerable questions"),
    "novel_bigrams": Name("novel word pairs", True, 0, "abstraction: pairs not in the prompt"),
    "toxicity": Name("toxicity", False, 3, "mean probability of being offensive"),
    "toxic_share": Name("toxic", True, 1, "share at or above the scorer's threshold"),
    "rude_share": Name("rude", True, 1, "share with a rude word, by the judge's list"),
    "tokens": Name("tokens", False, 1, "mean response length"),
    "words": Name("words", False, 1, "mean response length"),
    "eos_rate": Name("ends by itself", True, 0, "share that stop before the token limit"),
    "refusal": Name("declines", True, 1, "says that it has no answer, on any prompt"),
    "repeated_answer": Name(
        "repeated answers", True, 1, "wrong, and word for word another prompt's answer"
    ),
    "most_frequent_answer": Name(
        "most frequent answer", True, 1, "share of the one answer given most often"
    ),
    "pair_accuracy": Name("pair accuracy", True, 1),
    "loss": Name("pretraining loss", False, 3, "nats per token on held-out pretraining text"),
    "true": Name("true", True, 0, "share the given judge calls true"),
    "true_info": Name("true and informative", True, 0, "share called both"),
    "true_probability": Name("mean P(true)", False, 3, "of the given judge"),
    "no_comment": Name("no comment", True, 0, "declines by that phrase"),
}

SUITES = {
    "preference": "Preference",
    "preference_by_reward_model": "Preference by reward model (not independent)",
    "use_cases": "Use cases",
    "reward_model": "Reward model score",
    "hallucination": "Hallucination",
    "toxicity": "Toxicity",
    "truthfulness": "Truthfulness",
    "responses": "Responses",
    "pretraining": "Pretraining loss",
    "scores": "Scores",
    "answers": "Right answers",
    "human_labels": "Human labels",
    "tax": "Benchmarks",
    "toxicity_by_prompt": "Toxicity by the prompt's own",
    "preference_by_llm": "Preference by a language model",
}

MINUS = "\u2212"
RANGE = "\u2013"
THIN = "\u202f"
MISSING = "\u2013"


def named(metric: str) -> Name:
    """Return the words for a metric; an unknown one keeps its own name."""
    if metric in NAMES:
        return NAMES[metric]
    for start, title in (
        ("expected_max_toxicity_", "worst of {}"),
        ("any_toxic_", "any of {} toxic"),
    ):
        if metric.startswith(start):
            return Name(title.format(metric.removeprefix(start)), start == "any_toxic_", 3)
    return Name(metric.replace("_", " "), False, 3)


def suite_title(suite: str) -> str:
    """Return the heading of a suite."""
    return SUITES.get(suite, suite.replace("_", " ").capitalize())


def filter_title(text: str) -> str:
    """Return a part of a suite in words: `closed_qa` becomes "closed QA"."""
    words = {"qa": "QA", "all": "all prompts", "none": "no instruction"}
    return " ".join(words.get(word, word) for word in text.split("_"))


def capital(text: str) -> str:
    """Return the text with a capital first letter, the rest as it is."""
    return text[:1].upper() + text[1:]


def number(value: float, name: Name, *, unit: bool = True) -> str:
    """Return the value as it is printed, with a true minus; "n/a" if there is none."""
    if not math.isfinite(value):
        return "n/a"
    scaled = 100 * value if name.share else value
    text = f"{scaled:.{name.digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", MINUS) + (f"{THIN}%" if name.share and unit else "")


def interval(low: float, high: float, name: Name) -> str:
    """Return the interval's two ends, without a unit, which stands beside the value."""
    ends = [number(end, name, unit=False) for end in (low, high)]
    joint = " to " if any(end.startswith(MINUS) for end in ends) else RANGE
    return joint.join(ends)


def cell_text(cell: Cell) -> str:
    """Return value and interval in one line."""
    name = named(cell.quantity.metric)
    return f"{number(cell.value, name)} ({interval(*cell.ci95, name)})"


def p_text(p: float) -> str:
    """Return a p value as papers print it."""
    if not math.isfinite(p):
        return "n/a"
    return "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0") if p < 1 else "1"


def difference_text(comparison: Comparison) -> str:
    """Return the difference in points or units, with its sign and interval."""
    name = named(comparison.quantity.metric)
    sign = "+" if comparison.diff > 0 else ""
    points = " points" if name.share else ""
    value = number(comparison.diff, name, unit=False)
    return f"{sign}{value}{points} ({interval(*comparison.ci95, name)})"
