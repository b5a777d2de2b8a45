"""Answers of annotators: checked against the form, and turned into what is stored.

The page knows outputs only as numbers in the order it shows them, so that neither the ids nor the
names of the models reach it.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from labeling_ui.forms import Form, FormPart, Scale, first_language, first_problem
from labeling_ui.store.records import TextTask, WritingTask
from reward_models.records import Ranking, RankingTask

LEAST_PAIRS, MOST_PAIRS = 2, 12
Note = Annotated[str, Field(max_length=20_000)]
Written = Annotated[str, Field(max_length=50_000)]


class PageAnswer(FormPart):
    """Parts of every answer. A skipped task has a reason."""

    note: Note = ""
    seconds: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    skipped: Annotated[str, Field(min_length=1, max_length=500)] | None = None


class Answers(PageAnswer):
    """The answers about outputs: numbers in the order shown, 0 first; null is unanswered."""

    tiers: tuple[tuple[int, ...], ...] = ()
    ratings: Mapping[int, int] = Field(default_factory=dict)
    flags: Mapping[int, Mapping[str, bool | None]] = Field(default_factory=dict)
    scales: Mapping[int, Mapping[str, int | None]] = Field(default_factory=dict)
    notes: Mapping[int, Note] = Field(default_factory=dict)
    prompt_flags: Mapping[str, bool | None] = Field(default_factory=dict)
    prompt_scales: Mapping[str, int | None] = Field(default_factory=dict)
    seeded: bool = False


class Pair(FormPart):
    """One query of a few-shot prompt and its response."""

    query: Written = ""
    response: Written = ""


class Writing(PageAnswer):
    """The page's answer to a writing task."""

    prompt: Written = ""
    response: Written = ""
    instruction: Written = ""
    pairs: Annotated[tuple[Pair, ...], Field(max_length=MOST_PAIRS)] = ()


Part = TypeVar("Part", bound=PageAnswer)


def parse(model: type[Part], body: Mapping[str, Any]) -> Part:
    """Check an answer of the page; ValueError in one line."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None


def ranking_from(
    form: Form, answers: Answers, task: RankingTask, order: Sequence[str], annotator: str
) -> Ranking:
    """Return the ranking that the answers mean; ValueError if a required answer is missing.

    `order` are the response ids in the order shown.
    """
    if answers.skipped is None:
        ranked = sorted(i for tier in answers.tiers for i in tier)
        if ranked != list(range(len(order))):
            raise ValueError(f"{len(set(ranked))} of {len(order)} outputs are ranked")
        _check_questions(form, answers, len(order))
    tiers = [tier for tier in answers.tiers if tier]
    ranks = {order[i]: rank for rank, tier in enumerate(tiers, 1) for i in tier}
    notes = {order[i]: text for i, text in sorted(answers.notes.items()) if text.strip()}
    extra = {
        "form": f"{form.name} {form.version}",
        "flags_no": _flags_by_id(answers, order, value=False),
        "scales": {order[i]: _answered(row) for i, row in sorted(answers.scales.items())},
        "prompt_flags": _answered(answers.prompt_flags),
        "prompt_scales": _answered(answers.prompt_scales),
        "output_notes": notes,
        "seeded": answers.seeded,
    }
    return Ranking(
        task=task.id,
        annotator=annotator,
        kind="human",
        ranks={} if answers.skipped is not None else ranks,
        ratings={order[i]: rating for i, rating in sorted(answers.ratings.items())},
        flags=_flags_by_id(answers, order, value=True),
        notes=answers.note.strip() or None,
        seconds=round(answers.seconds, 1),
        shown_order=list(order),
        skipped=answers.skipped,
        extra={name: value for name, value in extra.items() if value},
    )


def rating_from(form: Form, answers: Answers, task: TextTask, annotator: str) -> dict[str, Any]:
    """Return the rating of one text; ValueError if a required answer is missing."""
    if task.prompt is None:
        alone = tuple(scale for scale in form.scales if not scale.relative)
        form = form.model_copy(update={"scales": alone})
    if answers.skipped is None:
        _check_questions(form, answers, 1)
    flags = answers.flags.get(0, {})
    row = {
        "form": f"{form.name} {form.version}",
        "rating": answers.ratings.get(0),
        "flags": [name for name, value in flags.items() if value],
        "flags_no": [name for name, value in flags.items() if value is False],
        "scales": {**_answered(answers.scales.get(0, {})), **_answered(answers.prompt_scales)},
        "prompt_flags": _answered(answers.prompt_flags),
        "notes": answers.notes.get(0, "").strip() or answers.note.strip(),
        "seconds": round(answers.seconds, 1),
        "skipped": answers.skipped,
    }
    head = {"task": task.id, "annotator": annotator, "kind": "human"}
    return {**head, **{name: value for name, value in row.items() if value not in ("", None)}}


def writing_from(kind: str, writing: Writing, task: WritingTask, annotator: str) -> dict[str, Any]:
    """Return the demonstration or prompt written; ValueError if a required part is missing."""
    if writing.skipped is None:
        _check_writing(kind, writing, task)
    head = {"task": task.id, "annotator": annotator, "kind": "human", "shape": task.shape}
    row = {**head, **writing.model_dump()}
    return {name: value for name, value in row.items() if value not in ("", (), None)}


def _check_writing(kind: str, writing: Writing, task: WritingTask) -> None:
    if task.shape == "few-shot":
        whole = [pair for pair in writing.pairs if pair.query.strip() and pair.response.strip()]
        if len(whole) != len(writing.pairs) or len(whole) < LEAST_PAIRS:
            raise ValueError(f"a few-shot prompt needs {LEAST_PAIRS} or more whole pairs")
        if not writing.instruction.strip():
            raise ValueError("the instruction is missing")
        return
    if task.prompt is None and not writing.prompt.strip():
        raise ValueError("the prompt is missing")
    if kind == "demonstration" and not writing.response.strip():
        raise ValueError("the response is missing")


def _check_questions(form: Form, answers: Answers, num_outputs: int) -> None:
    outputs = range(num_outputs)
    if form.quality and any(i not in answers.ratings for i in outputs):
        raise ValueError("every output needs a quality from 1 to 7")
    for i in outputs:
        for scale in form.scales:
            _check_scale(scale, answers.scales.get(i, {}).get(scale.id))
    for scale in form.prompt_scales:
        _check_scale(scale, answers.prompt_scales.get(scale.id))
    known = {flag.id for flag in form.flags}
    for row in answers.flags.values():
        if not set(row) <= known:
            raise ValueError(f"flags {sorted(set(row) - known)} are not asked for")


def _check_scale(scale: Scale, value: int | None) -> None:
    if value is None or not scale.lowest <= value <= scale.highest:
        raise ValueError(
            f"'{first_language(scale.text)}' is {value}, expected {scale.lowest} to {scale.highest}"
        )


def _answered(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def _flags_by_id(answers: Answers, order: Sequence[str], *, value: bool) -> dict[str, list[str]]:
    chosen = {
        order[i]: [name for name, given in row.items() if given is value]
        for i, row in sorted(answers.flags.items())
    }
    return {name: flags for name, flags in chosen.items() if flags}
