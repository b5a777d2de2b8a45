"""Files of samples: CSV, TSV or JSONL, read row by row, so that texts never fill the memory.

A first pass checks the columns and notes which model answered which prompt; the second yields
completions. `notes` says what is dropped or assumed on the way.

A map `{"model": "model_type", "completion": "sample", "prompt": "context"}` names the file's column
for each field. A field whose own name, or a usual other name for it, is a column needs no entry.
Any other name in the map is a score already given in the file, e.g. `{"toxicity": "perspective"}`;
so are columns that are called toxicity, true or info and are not used otherwise. A `reference`
holds the right answers, alternatives separated by `|` (or a list).

Dimension key:  S rows in the order of the files.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from pipeline.evaluation.samples.records import Bools, Completion, completion_from
from reward_models.conversations import Conversation, Turn, parse_turns, prompt_turns, question
from reward_models.row_files import (
    ending,
    optional_name,
    optional_text,
    read_rows,
    required_name,
    required_text,
    whole_number,
)
from stages.progress import Report, Step, silent

FILE_SCORER = "given in the file"
FIELDS = (
    *("id", "model", "prompt", "completion", "prompt_type", "k"),
    *("context", "category", "reference", "answerable"),
)
KNOWN_SCORES = ("toxicity", "true", "info")
UNNUMBERED = -1
INDEX = {"", "index", "Unnamed: 0"}  # columns that number the rows
Row = Mapping[str, Any]
_JSON = {".jsonl", ".json", ".ndjson"}
_OWN = {"id", "model", "completion", "suite"}  # keys of our own samples.jsonl, and a prompt
_PART = ["suite", "prompt_type"]
_EVERY = 1000  # rows between two reports of progress
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


@dataclass(frozen=True, slots=True)
class SampleFiles:
    """Checked files; `models` in the order in which the files number them."""

    paths: Sequence[Path]
    layouts: Mapping[Path, Layout | None]  # None: our own samples.jsonl
    models: Sequence[str]
    index: pd.DataFrame  # suite, prompt_type, model, id and k of each row
    notes: list[str]

    def gives(self, score: str) -> bool:
        """Return whether any file brings this score of its own."""
        return any(
            layout is not None and score in layout.scores for layout in self.layouts.values()
        )

    def rows(self, wanted_S: Bools | None = None, report: Report = silent) -> Iterator[Completion]:
        """Yield the wanted completions, numbered within model and prompt."""
        k_S, total = self.index["k"].tolist(), len(self.index)
        repeated_S = self.index.duplicated().to_numpy()
        for number, (path, where, raw) in enumerate(_different_rows(self.paths, [])):
            if (number + 1) % _EVERY == 0 or number + 1 == total:
                report(Step(number + 1, total))
            if wanted_S is not None and not wanted_S[number]:
                continue
            row = replace(_completion(where, raw, self.layouts[path]), k=k_S[number])
            if repeated_S[number]:
                raise ValueError(
                    f"{where}: model '{row.model}', prompt type '{row.prompt_type}': two "
                    f"rows are sample {row.k} of prompt '{row.prompt[:40]}'"
                )
            yield row


def open_samples(paths: Sequence[Path], columns: Mapping[str, str]) -> SampleFiles:
    """Check the files. Raises ValueError `file:line: ...` on bad rows."""
    notes: list[str] = []
    paths = _different_files(paths, notes)
    layouts: dict[Path, Layout | None] = {}
    rows: list[tuple[Any, ...]] = []
    first_number: dict[str, int] = {}  # of each model, where the rows are numbered
    shared: dict[str, str] = {}  # one object for equal names
    for path, where, raw in _different_rows(paths, notes):
        if path not in layouts:
            has_prompt = "prompt" in raw or "messages" in raw
            own = ending(path) in _JSON and raw.keys() >= _OWN and has_prompt and not columns
            layouts[path] = None if own else layout_of(path, set(raw), columns)
        row = _completion(where, raw, layouts[path])
        names = (row.suite, row.prompt_type, row.model, row.id)
        rows.append((*(shared.setdefault(name, name) for name in names), row.k))
        for name in INDEX & raw.keys():
            if str(raw[name]).strip().isdecimal():
                number = int(raw[name])
                first_number[row.model] = min(number, first_number.get(row.model, number))
    index = pd.DataFrame(rows, columns=[*_PART, "model", "id", "k"], dtype=object)
    answers = index.groupby([*_PART, "model", "id"], sort=False)
    index["k"] = index["k"].where(index["k"] != UNNUMBERED, answers.cumcount())
    if (most := int(answers.size().max())) > 1:
        notes.append(f"up to {most} completions of one model to one prompt; the prompt is the unit")
    is_own = all(layout is None for layout in layouts.values())
    return SampleFiles(paths, layouts, _order(index["model"], first_number, is_own), index, notes)


def _order(models: pd.Series, first_number: Mapping[str, int], is_own: bool) -> list[str]:
    """The models in an order that shuffled rows do not change, since differences have a sign.

    Where rows are numbered, by the models' lowest numbers; else as they stand, if each model's rows
    stand together, and by name if they do not. Files of our own keep the order of training.
    """
    names = list(dict.fromkeys(models))
    if is_own:
        return names
    if first_number.keys() == set(names):
        return sorted(names, key=first_number.__getitem__)
    stand_together = sum(1 for _ in groupby(models)) == len(names)
    return names if stand_together else sorted(names)


def common_rows(
    index: pd.DataFrame, missing: Literal["error", "intersection"], notes: list[str]
) -> Bools:
    """Return whether every model answered a row's prompt, within its suite and prompt type.

    Raises ValueError if prompts are missing and `missing` is "error"; otherwise adds a sentence to
    `notes` that says how many. A model without any row in a part that others have is an error too,
    or is left out there, and that is noted.
    """

    def refuse(sentence: str) -> None:
        if missing == "error":
            raise ValueError(f"{sentence}; give the missing rows or ask for --missing intersect")

    models = {str(suite): set(names) for suite, names in index.groupby("suite")["model"]}
    for (suite, prompt_type), part in index.groupby(_PART, sort=False):
        for model in sorted(models[str(suite)] - set(part["model"])):
            sentence = f"{suite}, prompt type '{prompt_type}': {model} has no rows"
            refuse(sentence)
            notes.append(f"{sentence}; it is left out there")
    num_models_S = index.groupby(_PART)["model"].transform("nunique")
    answered_S = index.groupby([*_PART, "id"])["model"].transform("nunique")
    common_S: Bools = (answered_S == num_models_S).to_numpy(dtype=bool)
    for (suite, prompt_type), part in index.groupby(_PART, sort=False):
        prompts, total = part.groupby("model")["id"].nunique(), part["id"].nunique()
        if (prompts == total).all():
            continue
        lacking = ", ".join(
            f"{model} lacks {total - count}" for model, count in prompts.items() if count < total
        )
        sentence = f"{suite}, prompt type '{prompt_type}': of {total} prompts {lacking}"
        refuse(sentence)
        common = part["id"][common_S[part.index]].nunique()
        if not common:
            raise ValueError(f"{sentence}; no prompt was answered by every model")
        notes.append(f"{sentence}; compared on the {common} that all models answered")
    return common_S


def _different_files(paths: Sequence[Path], notes: list[str]) -> list[Path]:
    by_digest: dict[str, Path] = {}
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest in by_digest:
            notes.append(f"{path} has the same content as {by_digest[digest]}; it is counted once")
        by_digest.setdefault(digest, path)
    return list(by_digest.values())


def _different_rows(paths: Sequence[Path], notes: list[str]) -> Iterator[tuple[Path, str, Row]]:
    """Each row with its file and place, without those that an earlier file holds as often.

    Equal rows of one file are samples that happen to agree. A running number does not count.
    """
    earlier: set[bytes] = set()
    total = dropped = 0
    for path in paths:
        times: Counter[bytes] = Counter()
        keys: set[bytes] = set()
        before = total
        for where, row in read_rows(path):
            total += 1
            if len(paths) > 1:
                text = json.dumps({name: row[name] for name in row.keys() - INDEX}, sort_keys=True)
                digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
                times[digest] += 1
                key = digest + times[digest].to_bytes(8, "little")
                if key in earlier:
                    dropped += 1
                    continue
                keys.add(key)
            yield path, where, row
        if total == before:
            raise ValueError(f"{path}: no rows in it")
        earlier |= keys
    if dropped:
        notes.append(f"{dropped} of {total} rows repeat another row exactly; dropped")


def _completion(where: str, raw: Row, layout: Layout | None) -> Completion:
    try:
        return completion_from(raw) if layout is None else completion_of(raw, layout)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


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
        model="" if values["model"] == "" else required_name("model", values["model"]),
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
