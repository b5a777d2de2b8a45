"""The records that travel between stages: one JSON object a line, unknown fields kept.

    demonstration  {"prompt" | "messages", "response", "id"?, "context"?, "category"?, ...}
    prompt         {"prompt" | "messages", "id"?, "context"?, "category"?, "answerable"?, ...}
    ranking task   {"id", "prompt" | "messages", "context"?, "responses": [{"id", "text", "model",
                    "sampling"}]}
    ranking        {"task", "annotator", "kind", "ranks": {response id: 1..K}, "ratings", ...}

`messages` are the turns of a conversation that ends with the user, who is to be answered. A record
has that last turn's text as its `prompt` and the turns before it as its `history`. A prompt may
also be written as in `reward_models/conversations.py`.

A record checks itself once, on construction; code after that trusts it. Names (id, user, category,
source) may be whole numbers and become texts; an optional text that is null or empty is absent. A
list or an object may be JSON text, as tables hold it. Nothing here imports torch.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args

from reward_models.conversations import Turn, prompt_turns, question
from reward_models.row_files import (
    flag,
    json_value,
    mapping,
    number,
    optional_name,
    optional_text,
    read_rows,
    required_name,
    required_text,
)

R = TypeVar("R", bound="Record")
Kind = Literal["human", "simulated", "imported", "judge"]
Use = Literal["people", "judges", "both"]  # people: everybody who is no model
JUDGE = "judge:"  # begins the name of every model that ranks, and of nobody else
_PROMPT_KEYS = ("prompt", "messages", "conversations", "history")


@dataclass(frozen=True, slots=True)
class Record:
    """The base of all records: made from a JSON object, and written as the same one."""

    required: ClassVar[tuple[str, ...]] = ()
    extra: Mapping[str, Any] = field(default_factory=dict, kw_only=True)  # keys we do not know

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Build the record; raise ValueError naming the key that is missing or wrong."""
        known = {f.name for f in fields(cls)} - {"extra"}
        if "history" in known:
            row = _with_history(row)
        for name in cls.required:
            if name not in row:
                raise ValueError(f"key '{name}' is missing; found {sorted(row)}")
        inside = {name: row[name] for name in row if name in known}
        return cls(**inside, extra={name: row[name] for name in row if name not in known})

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, without the optional keys that are unset."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        row = {name: value for name, value in named.items() if value is not None}
        history: tuple[Turn, ...] = row.pop("history", ())
        prompt = row.get("prompt")
        if history or (prompt and prompt_turns({"prompt": prompt}) != (Turn("user", prompt),)):
            turns = [*history, Turn("user", row.pop("prompt"))]
            row = {"messages": [turn.to_json() for turn in turns], **row}
        return {**row, **self.extra}


def _with_history(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the row with the last user's text as `prompt` and the turns before it as `history`."""
    if row.get("history"):
        raise ValueError("'history' is no key of a row; expected earlier turns in 'messages'")
    turns = prompt_turns(row)
    rest = {name: value for name, value in row.items() if name not in _PROMPT_KEYS}
    if turns is None:
        return rest
    parsed = question(turns)
    return {**rest, "prompt": parsed.prompt, "history": parsed.history}


def assign(record: object, **values: object) -> None:
    """Set fields of a frozen record while it is made."""
    for name, value in values.items():
        object.__setattr__(record, name, value)


def assign_names(record: object, *names: str) -> None:
    """Check fields that name something, which are absent where they are null or blank."""
    assign(record, **{name: optional_name(name, getattr(record, name)) for name in names})


@dataclass(frozen=True, slots=True)
class Demonstration(Record):
    """A prompt with the response that a person wrote for it."""

    required = ("prompt", "response")
    prompt: str
    response: str
    id: str | None = None
    user: str | None = None
    source: str | None = None
    context: str | None = None
    category: str | None = None
    history: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        required_text("prompt", self.prompt)
        required_text("response", self.response)
        assign(self, context=optional_text("context", self.context))
        assign_names(self, "id", "user", "source", "category")


@dataclass(frozen=True, slots=True)
class Prompt(Record):
    """A prompt alone. `answerable` is None where the question does not arise."""

    required = ("prompt",)
    prompt: str
    id: str | None = None
    user: str | None = None
    context: str | None = None
    category: str | None = None
    answerable: bool | None = None
    history: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        required_text("prompt", self.prompt)
        assign(
            self,
            context=optional_text("context", self.context),
            answerable=flag("answerable", self.answerable),
        )
        assign_names(self, "id", "user", "category")


@dataclass(frozen=True, slots=True)
class Response:
    """One sampled output: its text, the model that wrote it, and how it was sampled."""

    id: str
    text: str
    model: str
    sampling: Mapping[str, Any]

    def __post_init__(self) -> None:
        required_text("text", self.text, empty=True)
        assign(
            self,
            id=required_name("id", self.id),
            model=optional_name("model", self.model) or "unknown",
            sampling=mapping("sampling", self.sampling),
        )

    @property
    def ended(self) -> bool:
        """Return true if the model ended it, or where that is unknown, as of a person."""
        return bool(self.sampling.get("ended", self.sampling.get("finish_reason") != "length"))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "id": self.id,
            "text": self.text,
            "model": self.model,
            "sampling": dict(self.sampling),
        }


@dataclass(frozen=True, slots=True)
class RankingTask(Record):
    """One prompt with the K responses (2..9) that annotators put in order."""

    required = ("id", "prompt", "responses")
    id: str
    prompt: str
    responses: tuple[Response, ...]
    context: str | None = None
    category: str | None = None
    history: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        required_text("prompt", self.prompt)
        built = _responses(self.responses)
        assign(
            self,
            id=required_name("id", self.id),
            responses=built,
            context=optional_text("context", self.context),
        )
        assign_names(self, "category")
        ids = [response.id for response in built]
        if not 2 <= len(ids) <= 9:
            raise ValueError(f"task '{self.id}' has {len(ids)} responses, expected 2 to 9")
        if len(set(ids)) != len(ids):
            raise ValueError(f"task '{self.id}' names a response id twice: {ids}")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, responses included."""
        row = Record.to_json(self)
        return {**row, "responses": [response.to_json() for response in self.responses]}


def _responses(rows: object) -> tuple[Response, ...]:
    if isinstance(rows, str):
        rows = json_value(rows)
    if not isinstance(rows, list | tuple):
        raise ValueError(f"'responses' is {type(rows).__name__}, expected a list of responses")
    return tuple(_response(row) for row in rows)


def _response(row: object) -> Response:
    if isinstance(row, Response):
        return row
    if not isinstance(row, Mapping):
        raise ValueError(f"a response is {type(row).__name__}, expected an object with id and text")
    for name in ("id", "text"):
        if name not in row:
            raise ValueError(f"a response has no '{name}'; found {sorted(row)}")
    sampling = mapping("sampling", row.get("sampling"))
    return Response(row["id"], row["text"], row.get("model") or "unknown", sampling)


@dataclass(frozen=True, slots=True)
class Ranking(Record):
    """One annotator's order over the responses of a task. Rank 1 is best; equal ranks are a tie."""

    required = ("task", "annotator", "kind", "ranks")
    task: str
    annotator: str
    kind: Kind
    ranks: Mapping[str, int]
    ratings: Mapping[str, int] = field(default_factory=dict)
    flags: Mapping[str, list[str]] = field(default_factory=dict)
    notes: str | None = None
    seconds: float | None = None
    shown_order: list[str] | None = None
    skipped: str | None = None
    time: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(
                f"'kind' is {self.kind!r}, expected one of {', '.join(get_args(Kind))}"
            )
        skipped = _reason(self.skipped)
        if self.ranks is None and skipped is None:
            raise ValueError("'ranks' is null, and the ranking is not skipped")
        if (self.kind == "judge") != str(self.annotator).startswith(JUDGE):
            name = f"annotator '{self.annotator}' is {self.kind}"
            raise ValueError(f"{name}; expected judges' names, and no others, to begin '{JUDGE}'")
        extra = dict(self.extra)
        if "flags_no" in extra:
            extra["flags_no"] = _name_lists("flags_no", extra["flags_no"])
        assign(
            self,
            task=required_name("task", self.task),
            annotator=required_name("annotator", self.annotator),
            ranks=_whole_numbers("rank", mapping("ranks", self.ranks)),
            ratings=_whole_numbers("rating", mapping("ratings", self.ratings), most=7),
            flags=_name_lists("flags", self.flags),
            notes=optional_text("notes", self.notes),
            seconds=number("seconds", self.seconds),
            shown_order=_order(self.shown_order),
            skipped=skipped,
            time=optional_text("time", self.time),
            extra=extra,
        )

    def check_against(self, task: RankingTask) -> None:
        """Raise ValueError unless every response has a rank, and no other; skipped: none has."""
        if self.skipped is not None:
            return
        ids = {response.id for response in task.responses}
        if set(self.ranks) != ids:
            raise ValueError(
                f"{len(ids)} responses but {len(self.ranks)} ranks for prompt '{task.prompt[:40]}'"
                if len(self.ranks) != len(ids)
                else f"ranks name {sorted(self.ranks)}, task '{task.id}' has {sorted(ids)}"
            )

    def comparisons(self) -> Iterator[tuple[str, str]]:
        """Every untied pair of response ids, better one first."""
        for a, b in combinations(self.ranks, 2):
            if self.ranks[a] != self.ranks[b]:
                yield (a, b) if self.ranks[a] < self.ranks[b] else (b, a)


def _whole_numbers(
    name: str, values: Mapping[str, Any], *, most: int | None = None
) -> dict[str, int]:
    """Return a whole number from 1 by response id; null is none."""
    numbers: dict[str, int] = {}
    for response, value in values.items():
        if value is None:
            continue
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not is_whole or value < 1 or (most is not None and value > most):
            expected = "a whole number from 1" if most is None else f"1 to {most}"
            raise ValueError(
                f"{name} of response '{response}' is {value!r:.40}, expected {expected}"
            )
        numbers[str(response)] = value
    return numbers


def _name_lists(name: str, value: object) -> dict[str, list[str]]:
    """Return a list of names by response id; null is none."""
    flags: dict[str, list[str]] = {}
    for response, names in mapping(name, value).items():
        if names is None:
            continue
        if not isinstance(names, list | tuple):
            raise ValueError(
                f"'{name}' of response '{response}' is {type(names).__name__}, expected a list"
            )
        flags[str(response)] = [required_name(name, one) for one in names]
    return flags


def _reason(skipped: object) -> str | None:
    """Return the reason of a skip; None for '', false and null."""
    if isinstance(skipped, bool):
        return "skipped" if skipped else None
    return optional_text("skipped", skipped)


def _order(value: object) -> list[str] | None:
    if value in (None, ""):
        return None
    value = json_value(value) if isinstance(value, str) else value
    if not isinstance(value, list | tuple):
        raise ValueError(f"'shown_order' is {type(value).__name__}, expected a list of ids")
    return [required_name("shown_order", one) for one in value]


def read_records(path: Path, kind: type[R]) -> list[R]:
    """Read a record a row of any kind of file; ValueError `file:line: ...` on the first bad one."""
    records = [record for _, record in _located_records(path, kind)]
    if not records:
        raise ValueError(f"{path}: no {kind.__name__.lower()} in it")
    return records


def _located_records(path: Path, kind: type[R]) -> Iterator[tuple[str, R]]:
    """Yield each record with its location, `file:line`."""
    for where, row in read_rows(path):
        try:
            yield where, kind.from_json(row)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


class UniqueKeys:
    """The lines of keys that may occur once."""

    def __init__(self) -> None:
        self.locations: dict[tuple[str, ...], str] = {}

    def add(self, where: str, what: str, *key: str) -> None:
        """Add a key with its location; ValueError names both where it occurs again."""
        first = self.locations.setdefault(key, where)
        if first != where:
            raise ValueError(f"{where}: {what} again; it is at {first} already")


def read_tasks(path: Path) -> list[RankingTask]:
    """Return the tasks of a file; ValueError `file:line: ...` on a bad one or a repeated id."""
    once, tasks = UniqueKeys(), []
    for where, task in _located_records(path, RankingTask):
        once.add(where, f"task '{task.id}'", task.id)
        tasks.append(task)
    if not tasks:
        raise ValueError(f"{path}: no ranking task in it")
    return tasks


def read_rankings(path: Path, tasks: Iterable[RankingTask]) -> list[Ranking]:
    """Return the rankings of a file about these tasks.

    ValueError `file:line: ...` on one of an unknown task, or that does not rank its responses, and
    where an annotator ranks a task a second time.
    """
    by_id = {task.id: task for task in tasks}
    once, rankings = UniqueKeys(), []
    for where, ranking in _located_records(path, Ranking):
        try:
            if ranking.task not in by_id:
                raise ValueError(f"no task '{ranking.task}' among the {len(by_id)} tasks")
            ranking.check_against(by_id[ranking.task])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        what = f"the ranking of task '{ranking.task}' by '{ranking.annotator}'"
        once.add(where, what, ranking.task, ranking.annotator)
        rankings.append(ranking)
    return rankings
