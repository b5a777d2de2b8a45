"""The records that travel between stages: one JSON object a line, unknown fields kept.

    demonstration  {"prompt" | "messages", "response", "id"?, "context"?, "category"?, ...}
    prompt         {"prompt" | "messages", "id"?, "context"?, "category"?, "answerable"?, ...}
    ranking task   {"id", "prompt" | "messages", "context"?, "responses": [{"id", "text", "model",
                    "sampling"}]}
    ranking        {"task", "annotator", "kind", "ranks": {response id: 1..K}, "ratings", ...}

`messages` are the turns of a conversation that ends with the user, who is to be answered. A record
has that last turn's text as its `prompt` and the turns before it as its `history`.

A record checks itself once, on construction; code after that trusts it. Nothing here imports torch.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args

R = TypeVar("R", bound="Record")
Kind = Literal["human", "simulated", "imported"]
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise ValueError(
                f"a message has the role {self.role!r}, expected one of {', '.join(get_args(Role))}"
            )
        if not isinstance(self.content, str):
            raise ValueError(
                f"a message's content is {type(self.content).__name__}, expected a string"
            )

    def to_json(self) -> dict[str, str]:
        """The JSON object."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Record:
    """What every record shares: it comes from a JSON object and turns back into the same one."""

    required: ClassVar[tuple[str, ...]] = ()
    extra: Mapping[str, Any] = field(default_factory=dict, kw_only=True)  # keys we do not know

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Build the record; raise ValueError naming the key that is missing or wrong."""
        known = {f.name for f in fields(cls)} - {"extra"}
        if "history" in known and "messages" in row:
            row = _with_prompt(row)
        for name in cls.required:
            if name not in row:
                raise ValueError(f"key '{name}' is missing; found {sorted(row)}")
        inside = {name: row[name] for name in row if name in known}
        return cls(**inside, extra={name: row[name] for name in row if name not in known})

    def to_json(self) -> dict[str, Any]:
        """The JSON object, without the optional keys that are unset."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        kept = {name: value for name, value in named.items() if value is not None}
        history: tuple[Turn, ...] = kept.pop("history", ())
        if history:
            turns = [*history, Turn("user", kept.pop("prompt"))]
            kept = {"messages": [turn.to_json() for turn in turns], **kept}
        return {**kept, **self.extra}


def _with_prompt(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with `prompt` and `history` in place of `messages`."""
    if "prompt" in row:
        raise ValueError("both 'prompt' and 'messages' are there; expected one of them")
    messages = row["messages"]
    if not isinstance(messages, list) or not all(isinstance(one, Mapping) for one in messages):
        raise ValueError(f"'messages' is {messages!r:.60}, expected a list of roles and contents")
    turns = [Turn(one.get("role"), one.get("content")) for one in messages]
    if not turns or turns[-1].role != "user":
        raise ValueError("'messages' does not end with a user's turn, which is to be answered")
    rest = {name: value for name, value in row.items() if name != "messages"}
    return {**rest, "prompt": turns[-1].content, "history": tuple(turns[:-1])}


def _text(name: str, value: object, *, empty: bool = False) -> None:
    if not isinstance(value, str):
        raise ValueError(f"'{name}' is {type(value).__name__}, expected a string")
    if not empty and not value.strip():
        raise ValueError(f"'{name}' is empty")


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
        _text("prompt", self.prompt)
        _text("response", self.response)


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
        _text("prompt", self.prompt)


@dataclass(frozen=True, slots=True)
class Response:
    """One sampled output: its text, the model that wrote it, and how it was sampled."""

    id: str
    text: str
    model: str
    sampling: Mapping[str, Any]

    def __post_init__(self) -> None:
        _text("id", self.id)
        _text("text", self.text, empty=True)

    @property
    def ended(self) -> bool:
        """Whether its model ended it; one that tells nothing, such as a person's, has an end."""
        return bool(self.sampling.get("ended", self.sampling.get("finish_reason") != "length"))

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
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
        _text("id", self.id)
        _text("prompt", self.prompt)
        built = tuple(_response(row) for row in self.responses)
        object.__setattr__(self, "responses", built)
        ids = [response.id for response in built]
        if not 2 <= len(ids) <= 9:
            raise ValueError(f"task '{self.id}' has {len(ids)} responses, expected 2 to 9")
        if len(set(ids)) != len(ids):
            raise ValueError(f"task '{self.id}' names a response id twice: {ids}")

    def to_json(self) -> dict[str, Any]:
        """The JSON object, responses included."""
        row = Record.to_json(self)
        return {**row, "responses": [response.to_json() for response in self.responses]}


def _response(row: Response | Mapping[str, Any]) -> Response:
    if isinstance(row, Response):
        return row
    for name in ("id", "text"):
        if name not in row:
            raise ValueError(f"a response has no '{name}'; found {sorted(row)}")
    return Response(row["id"], row["text"], row.get("model", "unknown"), row.get("sampling", {}))


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
        _text("task", self.task)
        _text("annotator", self.annotator)
        if self.kind not in get_args(Kind):
            raise ValueError(
                f"'kind' is {self.kind!r}, expected one of {', '.join(get_args(Kind))}"
            )
        for name, rank in self.ranks.items():
            if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
                raise ValueError(
                    f"rank of response '{name}' is {rank!r}, expected a whole number from 1"
                )
        for name, rating in self.ratings.items():
            if rating not in range(1, 8):
                raise ValueError(f"rating of response '{name}' is {rating!r}, expected 1 to 7")

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


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object); raise ValueError `file:line: ...` on other lines."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: {type(row).__name__}, expected a JSON object")
            yield number, row


def read_records(path: Path, kind: type[R]) -> list[R]:
    """Read one record a line; ValueError `file:line: what, expected what` on the first bad one."""
    records = []
    for number, row in read_jsonl(path):
        try:
            records.append(kind.from_json(row))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    if not records:
        raise ValueError(f"{path}: no {kind.__name__.lower()} in it")
    return records


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the rows beside `path` and rename, so that a reader never sees half a file."""
    aside = path.with_name(path.name + ".part")
    with aside.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    aside.replace(path)


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN: what could not be computed is null."""
    return value if math.isfinite(value) else None
