"""What an annotator wrote: checked, and as the demonstrations and prompts that stage one reads.

Of a few-shot prompt with N pairs come N demonstrations, each asking for one pair's response with
the others before it (Ouyang et al. 2022, appendix A.2).
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError

from labeling_ui.forms import FormPart, first_problem
from labeling_ui.store.records import WritingTask, answers_of
from labeling_ui.store.store import Store
from reward_models.records import Demonstration, Prompt

SOURCE = "labeling room"
LEAST_PAIRS, MOST_PAIRS = 2, 12
Written = Annotated[str, Field(max_length=50_000)]


class Pair(FormPart):
    """One query of a few-shot prompt and its response."""

    query: Written = ""
    response: Written = ""


class Writing(FormPart):
    """What the page sends of a writing task."""

    prompt: Written = ""
    response: Written = ""
    instruction: Written = ""
    pairs: Annotated[tuple[Pair, ...], Field(max_length=MOST_PAIRS)] = ()
    note: Annotated[str, Field(max_length=20_000)] = ""
    seconds: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    skipped: Annotated[str, Field(min_length=1, max_length=500)] | None = None


def parse_writing(body: Mapping[str, Any]) -> Writing:
    """Check what the page sent; ValueError in one line."""
    try:
        return Writing.model_validate(body)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None


def writing_record(
    kind: str, task: WritingTask, written: Writing, annotator: str
) -> dict[str, Any]:
    """The answer to be stored; ValueError if something asked for is missing."""
    if written.skipped is None:
        _check(kind, task, written)
    row = written.model_dump()
    row = {"task": task.id, "annotator": annotator, "kind": "human", "shape": task.shape, **row}
    return {name: value for name, value in row.items() if value not in ("", (), None)}


def _check(kind: str, task: WritingTask, written: Writing) -> None:
    if task.shape == "few-shot":
        pairs = [pair for pair in written.pairs if pair.query.strip() and pair.response.strip()]
        if len(pairs) != len(written.pairs) or len(pairs) < LEAST_PAIRS:
            raise ValueError(f"a few-shot prompt needs {LEAST_PAIRS} or more whole pairs")
        if not written.instruction.strip():
            raise ValueError("the instruction is missing")
        return
    if task.prompt is None and not written.prompt.strip():
        raise ValueError("the prompt is missing")
    if kind == "demonstration" and not written.response.strip():
        raise ValueError("the response is missing")


def demonstrations(store: Store) -> list[Demonstration]:
    """All demonstrations written in the room, as stage one reads them."""
    found = answers_of(store, "demonstration")
    return [made for task, row in found if isinstance(task, WritingTask) for made in _of(task, row)]


def prompts(store: Store) -> list[Prompt]:
    """All prompts written in the room, with demonstrations or alone."""
    alone = [
        Prompt(text, f"{task.id}/{row['annotator']}/{i}", row["annotator"], task.context,
               task.category, history=task.history)
        for task, row in answers_of(store, "prompt") if isinstance(task, WritingTask)
        for i, (text, _) in enumerate(_prompts_of(task, row))
    ]  # fmt: skip
    return [*alone, *(Prompt(d.prompt, d.id, d.user, d.context, d.category, history=d.history)
                      for d in demonstrations(store))]  # fmt: skip


def _of(task: WritingTask, row: Mapping[str, Any]) -> Iterator[Demonstration]:
    for i, (prompt, response) in enumerate(_prompts_of(task, row)):
        yield Demonstration(
            prompt,
            response,
            id=f"{task.id}/{row['annotator']}/{i}",
            user=row["annotator"],
            source=SOURCE,
            context=task.context,
            category=task.category,
            history=task.history,
            extra={"shape": task.shape},
        )


def _prompts_of(task: WritingTask, row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The prompts, each with its response, that one answer makes."""
    if task.shape != "few-shot":
        yield task.prompt or row["prompt"], row.get("response", "")
        return
    pairs = row["pairs"]
    for i, asked in enumerate(pairs):
        shown = [f"Input: {p['query']}\nOutput: {p['response']}" for p in pairs if p is not asked]
        parts = [row["instruction"], *shown, f"Input: {asked['query']}\nOutput:"]
        yield "\n\n".join(parts), pairs[i]["response"]
