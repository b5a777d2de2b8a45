"""Sampled outputs side by side, one prompt a card; what a scorer calls toxic is folded away."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape

from pipeline.evaluation.external.columns import FILE_SCORER
from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.scorers.gold import GOLD
from pipeline.evaluation.scorers.toxicity import DEFAULT_THRESHOLD, PROFANITY
from pipeline.evaluation.scorers.wording import abstains
from pipeline.report.inputs import ReportInputs
from pipeline.report.sections import section
from pipeline.report.words import MINUS, filter_title
from reward_models.conversations import Turn

_SHOWN = 28  # prompts, where the evaluation does not say
_NOT_SAID = {"bias", "pretraining", "tax"}  # rows of texts that no policy wrote
TRUTH = "truthfulness"  # of which the reference answers are not said either


def outputs(inputs: ReportInputs) -> str:
    """A choice of prompts, spread evenly over use cases and instructions, with every answer."""
    cards = _cards(inputs.samples)
    wanted = int(inputs.results.about.get("shown_samples", _SHOWN))
    chosen = _spread(cards, wanted)
    if not chosen:
        return ""
    kinds = sorted({_kind(rows[0]) for rows in chosen})
    options = "".join(f'<option value="{escape(k)}">{escape(_label(k))}</option>' for k in kinds)
    marks = sorted({mark for rows in chosen for mark in _card_marks(rows)})
    marked = "".join(f'<option value="{mark}">{mark.replace("-", " ")}</option>' for mark in marks)
    filters = (
        '<p class="filters" hidden><label>Show <select id="kind">'
        f'<option value="">all kinds</option>{options}</select></label>'
        f'<label>where some output is <select id="mark"><option value="">anything</option>{marked}'
        '</select></label><label>with the words <input id="words" type="search"></label>'
        '<span id="left" aria-live="polite"></span></p>'
    )
    about = (
        f"{len(chosen)} of {len(cards)} different prompts, the first of each kind in the order "
        "of the evaluation: not picked by hand. One completion a policy. Toxic ones are folded."
    )
    body = "".join(_card(rows) for rows in chosen)
    return section("outputs", "Sampled outputs", about, filters, f'<div id="cards">{body}</div>')


def _cards(rows: Iterable[Completion]) -> list[list[Completion]]:
    """The first completion of each policy to each prompt; a prompt that recurs is shown once."""
    cards: dict[tuple[str, str, str], list[Completion]] = defaultdict(list)
    owner: dict[tuple[str, str, str | None, tuple[Turn, ...]], str] = {}
    for row in rows:
        if row.suite.partition(":")[0] in _NOT_SAID or (row.suite == TRUTH and not row.generation):
            continue
        asked = (row.suite, row.prompt, row.context, row.history)
        if row.k == 0 and owner.setdefault(asked, row.id) == row.id:
            cards[row.suite, row.prompt_type, row.id].append(row)
    return list(cards.values())


def _spread(cards: Sequence[list[Completion]], wanted: int) -> list[list[Completion]]:
    """The first card of every kind, then the second, and so on, sorted by kind again."""
    by_kind: dict[str, list[list[Completion]]] = defaultdict(list)
    for rows in cards:
        by_kind[_kind(rows[0])].append(rows)
    rounds = max(map(len, by_kind.values()), default=0)
    dealt = [
        rows
        for place in range(rounds)
        for kind in sorted(by_kind)
        for rows in by_kind[kind][place : place + 1]
    ]
    return sorted(dealt[:wanted], key=lambda rows: _kind(rows[0]))


def _kind(row: Completion) -> str:
    if row.prompt_type != "none":
        return f"{row.suite}/{row.prompt_type}"
    return f"{row.suite}/{row.category or 'none'}"


def _label(kind: str) -> str:
    suite, _, part = kind.partition("/")
    part = filter_title(part)
    return part if suite in {"test", "samples"} else f"{suite}, {part}"


def _card(rows: Sequence[Completion]) -> str:
    first = rows[0]
    context = f'<p class="passage">{escape(first.context)}</p>' if first.context else ""
    turns = "".join(
        f'<p class="turn"><small>{turn.role}</small> {escape(turn.content)}</p>'
        for turn in first.history
    )
    answers = "".join(_answer(row) for row in rows)
    return (
        f'<article class="card" data-kind="{escape(_kind(first))}" '
        f'data-marks="{" ".join(_card_marks(rows))}">'
        f"<header><small>{escape(_label(_kind(first)))}</small>{turns}{context}"
        f'<p class="prompt">{escape(first.prompt)}</p></header>'
        f'<div class="answers">{answers}</div></article>'
    )


def _card_marks(rows: Sequence[Completion]) -> list[str]:
    """What can be said of at least one of the outputs, in one word each."""
    found = {
        word
        for row in rows
        for word, is_so in (
            ("toxic", _toxic(row)),
            ("cut-off", not row.ended),
            ("declining", abstains(row.completion)),
            ("hallucinated", bool((row.scores.get(GOLD) or {}).get("hallucinated"))),
            ("unscored", None in row.scores.values()),
        )
        if is_so
    }
    return sorted(found)


def _answer(row: Completion) -> str:
    text = escape(row.completion) if row.completion.strip() else "<i>nothing</i>"
    body = f'<p class="said">{text}</p>'
    if _toxic(row):
        body = f"<details><summary>toxic, folded</summary>{body}</details>"
    marks = _marks(row)
    return (
        f'<div class="answer"><span class="who">{escape(row.model)}</span>{body}'
        f"<small>{escape(' · '.join(marks))}</small></div>"
    )


def _toxic(row: Completion) -> bool:
    for scorer, scores in row.scores.items():
        value = (scores or {}).get("toxicity")
        meta = row.score_meta.get(scorer, {})
        threshold = meta.get("threshold") or DEFAULT_THRESHOLD
        if value is not None and value >= threshold:
            return True
    return bool((row.scores.get(GOLD) or {}).get("rude"))


def _marks(row: Completion) -> list[str]:
    marks = []
    gold = row.scores.get(GOLD) or {}
    if (score := gold.get("gold")) is not None:
        marks.append(f"gold {score:.2f}".replace("-", MINUS))
    marks += [
        name.replace("_", " ")
        for name in ("correct", "hallucinated", "abstained")
        if gold.get(name)
    ]
    toxicity = (row.scores.get(PROFANITY) or row.scores.get(FILE_SCORER) or {}).get("toxicity")
    if toxicity is not None and row.suite != "test":
        marks.append(f"toxicity {toxicity:.2f}")
    if not row.ended:
        marks.append("cut off")
    return marks
