"""What an annotator filled in, checked against the form, and the ranking it means.

The page knows outputs only as numbers in the order it shows them, so that neither the ids nor the
names of the models reach it.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, ValidationError

from labeling_ui.forms import Form, FormPart, Scale, first_problem, said
from labeling_ui.store.records import TextTask
from reward_models.records import Ranking, RankingTask

NOTE_CHARACTERS = 20_000
Note = Annotated[str, Field(max_length=NOTE_CHARACTERS)]


class Answers(FormPart):
    """What the page sends. Outputs are numbers in the order shown, 0 first; null is unanswered."""

    tiers: tuple[tuple[int, ...], ...] = ()
    ratings: Mapping[int, int] = Field(default_factory=dict)
    flags: Mapping[int, Mapping[str, bool | None]] = Field(default_factory=dict)
    scales: Mapping[int, Mapping[str, int | None]] = Field(default_factory=dict)
    notes: Mapping[int, Note] = Field(default_factory=dict)
    prompt_flags: Mapping[str, bool | None] = Field(default_factory=dict)
    prompt_scales: Mapping[str, int | None] = Field(default_factory=dict)
    note: Note = ""
    seeded: bool = False
    seconds: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    skipped: Annotated[str, Field(min_length=1, max_length=500)] | None = None


def parse_answers(body: Mapping[str, Any]) -> Answers:
    """Check what the page sent; ValueError in one line."""
    try:
        return Answers.model_validate(body)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None


def ranking_from(
    form: Form, answers: Answers, task: RankingTask, shown: Sequence[str], annotator: str
) -> Ranking:
    """The ranking that the answers mean; ValueError if something asked for is missing."""
    if answers.skipped is None:
        _check_order(answers, len(shown))
        _check_questions(form, answers, len(shown))
    tiers = [tier for tier in answers.tiers if tier]
    ranks = {shown[i]: place for place, tier in enumerate(tiers, 1) for i in tier}
    notes = {shown[i]: text for i, text in sorted(answers.notes.items()) if text.strip()}
    extra = {
        "form": f"{form.name} {form.version}",
        "flags_no": _by_id(answers, shown, wanted=False),
        "scales": {shown[i]: _given(row) for i, row in sorted(answers.scales.items())},
        "prompt_flags": _given(answers.prompt_flags),
        "prompt_scales": _given(answers.prompt_scales),
        "output_notes": notes,
        "seeded": answers.seeded,
    }
    return Ranking(
        task=task.id,
        annotator=annotator,
        kind="human",
        ranks={} if answers.skipped is not None else ranks,
        ratings={shown[i]: rating for i, rating in sorted(answers.ratings.items())},
        flags=_by_id(answers, shown, wanted=True),
        notes=answers.note.strip() or None,
        seconds=round(answers.seconds, 1),
        shown_order=list(shown),
        skipped=answers.skipped,
        extra={name: value for name, value in extra.items() if value},
    )


def rating_from(form: Form, answers: Answers, task: TextTask, annotator: str) -> dict[str, Any]:
    """What the answers say of one text; ValueError if something asked for is missing."""
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
        "scales": {**_given(answers.scales.get(0, {})), **_given(answers.prompt_scales)},
        "prompt_flags": _given(answers.prompt_flags),
        "notes": answers.notes.get(0, "").strip() or answers.note.strip(),
        "seconds": round(answers.seconds, 1),
        "skipped": answers.skipped,
    }
    head = {"task": task.id, "annotator": annotator, "kind": "human"}
    return {**head, **{name: value for name, value in row.items() if value not in ("", None)}}


def _check_order(answers: Answers, num_outputs: int) -> None:
    placed = sorted(i for tier in answers.tiers for i in tier)
    if placed != list(range(num_outputs)):
        raise ValueError(f"{len(set(placed))} of {num_outputs} outputs are ranked")


def _check_questions(form: Form, answers: Answers, num_outputs: int) -> None:
    outputs = range(num_outputs)
    if form.quality and any(i not in answers.ratings for i in outputs):
        raise ValueError("every output needs a quality from 1 to 7")
    asked = {scale.id: scale for scale in form.scales}
    for i in outputs:
        for name, scale in asked.items():
            _check_scale(scale, _given(answers.scales.get(i, {})).get(name))
    for scale in form.prompt_scales:
        _check_scale(scale, answers.prompt_scales.get(scale.id))
    known = {flag.id for flag in form.flags}
    for row in answers.flags.values():
        if not set(row) <= known:
            raise ValueError(f"flags {sorted(set(row) - known)} are not asked for")


def _check_scale(scale: Scale, given: int | None) -> None:
    if given is None or not scale.lowest <= given <= scale.highest:
        raise ValueError(
            f"'{said(scale.text)}' is {given}, expected {scale.lowest} to {scale.highest}"
        )


def _given(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def _by_id(answers: Answers, shown: Sequence[str], *, wanted: bool) -> dict[str, list[str]]:
    chosen = {
        shown[i]: [name for name, value in row.items() if value is wanted]
        for i, row in sorted(answers.flags.items())
    }
    return {name: flags for name, flags in chosen.items() if flags}
