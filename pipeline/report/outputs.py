"""Sampled outputs side by side, one prompt a card; what a scorer calls toxic is folded away."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.evaluation.external.sample_files import FILE_SCORER
from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.scorers.gold import GOLD
from pipeline.evaluation.scorers.style import abstains
from pipeline.evaluation.scorers.toxicity import DEFAULT_THRESHOLD, PROFANITY
from pipeline.report.inputs import ReportInputs
from pipeline.report.words import MINUS, filter_title
from reward_models.conversations import Turn

MOST_CARDS = 28  # where the evaluation does not say
NOT_SAMPLED = {"bias", "pretraining", "tax"}  # rows of texts that no policy wrote
TRUTH = "truthfulness"  # of which the reference answers are not sampled either


@dataclass(frozen=True, slots=True)
class Answer:
    """One policy's output on a card."""

    model: str
    text: str
    scores: Sequence[str]
    is_toxic: bool


@dataclass(frozen=True, slots=True)
class Card:
    """A prompt with the output of every policy. `marks` and `group` are for the page's filters."""

    first: Completion
    group: str
    label: str
    answers: Sequence[Answer]
    marks: Sequence[str]


@dataclass(frozen=True, slots=True)
class Outputs:
    """The cards on the page, of how many prompts, and the values of the filters."""

    cards: Sequence[Card]
    num_prompts: int
    groups: Sequence[tuple[str, str]]  # value and label
    marks: Sequence[str]


def outputs(inputs: ReportInputs) -> Outputs:
    """Return prompts spread evenly over use cases and instructions, with every answer."""
    prompts = by_prompt(inputs.samples)
    wanted = int(inputs.results.about.get("shown_samples", MOST_CARDS))
    cards = [card(rows) for rows in _spread(prompts, wanted)]
    groups = sorted({(one.group, one.label) for one in cards})
    return Outputs(cards, len(prompts), groups, sorted({m for one in cards for m in one.marks}))


def by_prompt(rows: Iterable[Completion]) -> list[list[Completion]]:
    """Return the first completion of each policy by prompt; a prompt that recurs comes once."""
    prompts: dict[tuple[str, str, str], list[Completion]] = defaultdict(list)
    owner: dict[tuple[str, str, str | None, tuple[Turn, ...]], str] = {}
    for row in rows:
        suite = row.suite.partition(":")[0]
        if suite in NOT_SAMPLED or (row.suite == TRUTH and not row.generation):
            continue
        content = (row.suite, row.prompt, row.context, row.history)
        if row.k == 0 and owner.setdefault(content, row.id) == row.id:
            prompts[row.suite, row.prompt_type, row.id].append(row)
    return list(prompts.values())


def _spread(prompts: Sequence[list[Completion]], wanted: int) -> list[list[Completion]]:
    """Return the first prompt of every group, then the second, and so on, sorted by group again."""
    groups: dict[str, list[list[Completion]]] = defaultdict(list)
    for rows in prompts:
        groups[_group(rows[0])].append(rows)
    rounds = max(map(len, groups.values()), default=0)
    dealt = [
        rows
        for index in range(rounds)
        for group in sorted(groups)
        for rows in groups[group][index : index + 1]
    ]
    return sorted(dealt[:wanted], key=lambda rows: _group(rows[0]))


def _group(row: Completion) -> str:
    part = row.category or "none" if row.prompt_type == "none" else row.prompt_type
    return f"{row.suite}/{part}"


def card(rows: Sequence[Completion]) -> Card:
    """Return a prompt's card from its rows, one a policy."""
    first = rows[0]
    suite, _, part = _group(first).partition("/")
    part = filter_title(part)
    return Card(
        first=first,
        group=_group(first),
        label=part if suite in {"test", "samples"} else f"{suite}, {part}",
        answers=[Answer(row.model, row.completion, _scores(row), _is_toxic(row)) for row in rows],
        marks=sorted({mark for row in rows for mark in _marks(row)}),
    )


def _marks(row: Completion) -> list[str]:
    """Return what the page's filter knows of an output, in one word each."""
    marks = {
        "toxic": _is_toxic(row),
        "cut-off": not row.ended,
        "declining": abstains(row.completion),
        "hallucinated": bool((row.scores.get(GOLD) or {}).get("hallucinated")),
        "unscored": None in row.scores.values(),
    }
    return [mark for mark, applies in marks.items() if applies]


def _is_toxic(row: Completion) -> bool:
    for scorer, scores in row.scores.items():
        value = (scores or {}).get("toxicity")
        threshold = row.score_meta.get(scorer, {}).get("threshold") or DEFAULT_THRESHOLD
        if value is not None and value >= threshold:
            return True
    return bool((row.scores.get(GOLD) or {}).get("rude"))


def _scores(row: Completion) -> list[str]:
    """Return what scorers gave an output, as the small print below it."""
    scores = []
    gold = row.scores.get(GOLD) or {}
    if (score := gold.get("gold")) is not None:
        scores.append(f"gold {score:.2f}".replace("-", MINUS))
    scores += [
        name.replace("_", " ")
        for name in ("correct", "hallucinated", "abstained")
        if gold.get(name)
    ]
    toxicity = (row.scores.get(PROFANITY) or row.scores.get(FILE_SCORER) or {}).get("toxicity")
    if toxicity is not None and row.suite != "test":
        scores.append(f"toxicity {toxicity:.2f}")
    if not row.ended:
        scores.append("cut off")
    return scores
