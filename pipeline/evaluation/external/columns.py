"""External columns: from a row of a CSV, TSV or JSONL to a completion, through a column map.

A map `{"model": "model_type", "completion": "sample", "prompt": "context"}` names the file's column
for each field. A field whose own name, or a usual other name for it, is a column needs no entry.
Any other name in the map is a score already given in the file, e.g. `{"toxicity": "perspective"}`;
so are columns that are called toxicity, true or info and are not used otherwise. A `reference`
holds the right answers, alternatives separated by `|` (or a list).
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.evaluation.samples.records import Completion
from reward_models.conversations import Conversation, Turn, parse_turns, prompt_turns, question
from reward_models.row_files import (
    optional_name,
    optional_text,
    required_name,
    required_text,
    whole_number,
)

FILE_SCORER = "given in the file"
FIELDS = (
    *("id", "model", "prompt", "completion", "prompt_type", "k"),
    *("context", "category", "reference", "answerable"),
)
KNOWN_SCORES = ("toxicity", "true", "info")
UNNUMBERED = -1
_ALSO_CALLED = {  # in the order of preference
    "model": ("model_type", "model_name", "policy"),
    "prompt": ("messages", "conversations", "question", "instruction", "input"),
    "completion": ("sample", "response", "answer", "output", "generation", "text"),
    "reference": ("references", "answers"),
}
_ABSENT = {"", "na", "n/a", "nan", "none", "null"}  # a score that is not there; never a text
_YES_NO = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True, slots=True)
class Layout:
    """The column of each field and of each given score."""

    fields: Mapping[str, str]
    scores: Mapping[str, str]


def layout_of(path: Path, names: set[str], columns: Mapping[str, str]) -> Layout:
    """Return the layout; raise ValueError for a missing column, or a field without one."""
    for field, column in columns.items():
        if column not in names:
            raise ValueError(f"{path}: no column '{column}' for {field}; found {sorted(names)}")
    free = names - set(columns.values())
    fields = {field: columns.get(field, field) for field in FIELDS if field in {*columns, *free}}
    free -= set(fields.values())
    for field, others in _ALSO_CALLED.items():
        usual = [name for name in others if name in free and field not in fields]
        if usual:
            fields[field] = usual[0]
            free.remove(usual[0])
    if "prompt" not in fields and "context" in fields and "context" not in columns:
        fields["prompt"] = fields.pop("context")  # a text to be continued
    for field in ("model", "prompt", "completion"):
        if field not in fields:
            raise ValueError(
                f"{path}: which column is the {field}? Say {field}=COLUMN; found {sorted(names)}"
            )
    scores = {name: column for name, column in columns.items() if name not in FIELDS}
    return Layout(fields, scores | {name: name for name in KNOWN_SCORES if name in free})


def completion_of(row: Mapping[str, Any], layout: Layout) -> Completion:
    """Return the completion of a row; raise ValueError where a value is of the wrong kind."""
    values: dict[str, Any] = {field: row.get(column) for field, column in layout.fields.items()}
    context = optional_text("context", values.get("context"))
    completion = _answer(values["completion"])
    conversation = _conversation(values["prompt"], row, completion)
    turns = map(str, conversation.history)
    text = "\n\n".join([context or "", *turns, conversation.prompt])
    given = {name: _number(name, row.get(column)) for name, column in layout.scores.items()}
    references = alternatives(values["reference"]) if "reference" in values else None
    return Completion(
        id=optional_name("id", values.get("id")) or hashlib.sha256(text.encode()).hexdigest()[:16],
        model=_model(values["model"]),
        prompt=conversation.prompt,
        completion=completion,
        prompt_type=optional_name("prompt_type", values.get("prompt_type")) or "none",
        k=UNNUMBERED if values.get("k") in (None, "") else whole_number("k", values["k"]),
        context=context,
        category=optional_name("category", values.get("category")),
        history=conversation.history,
        answerable=_yes_no(values.get("answerable")),
        prompt_extra={} if references is None else {"reference": references},
        scores={FILE_SCORER: given} if given else {},
    )


def alternatives(reference: object) -> list[str]:
    """Return the right answers of a cell: a list's members, or texts separated by `|`."""
    if isinstance(reference, list):
        return [required_text("reference", each, empty=True) for each in reference]
    parts = ["" if reference is None else part.strip() for part in str(reference).split("|")]
    return list(dict.fromkeys(part for part in parts if part))


def _conversation(prompt: object, row: Mapping[str, Any], completion: str) -> Conversation:
    """The prompt with the turns before it; messages beside it may end with the completion."""
    if prompt is None:
        raise ValueError("'prompt' is null, expected a string")
    beside = {name: row[name] for name in ("messages", "conversations") if name in row}
    turns = prompt_turns({"prompt": prompt, **beside}) or (Turn("user", str(prompt)),)
    is_answered = len(turns) > 1 and turns[-1] == Turn("assistant", completion)
    return question(turns[:-1] if is_answered else turns)


def _model(model: object) -> str:
    return "" if model == "" else required_name("model", model)


def _answer(completion: object) -> str:
    turns = parse_turns(completion, "completion")
    if turns is None:
        return str(completion)
    if [turn.role for turn in turns] != ["assistant"]:
        raise ValueError(f"'completion' has {len(turns)} turns, expected one of the assistant")
    return turns[0].content


def _yes_no(value: object) -> bool | None:
    text = str(value).strip().lower()
    if value is None or text in _ABSENT:
        return None
    if text not in _YES_NO:
        raise ValueError(f"'answerable' is {value!r:.40}, expected yes or no")
    return _YES_NO[text]


def _number(name: str, value: object) -> float | None:
    text = str(value).strip().lower()
    if value is None or text in _ABSENT:
        return None
    if text in {"true", "false"}:
        return float(text == "true")
    try:
        score = float(text)
    except ValueError:
        score = math.inf
    if not math.isfinite(score):
        raise ValueError(f"score '{name}' is {value!r:.40}, expected a number")
    return score
