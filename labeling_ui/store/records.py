"""The room's other tasks: texts to rate, demonstrations and prompts to write, pairs to judge.

They lie in the same table as ranking tasks, told apart by `kind`, and are leased, drafted, sent
and amended alike. Only what is asked and what comes of it differ.

    ranking        a RankingTask  ->  a Ranking
    comparison     a RankingTask of two policies' outputs  ->  a Ranking of two
    rating         a TextTask  ->  the form's scales and flags
    demonstration  a WritingTask  ->  a response, and a prompt where none is given
    prompt         a WritingTask  ->  a prompt
    adjudication   a RankingTask that others have ranked  ->  the Ranking that counts
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import func, insert, select

from labeling_ui.forms import TaskKind
from labeling_ui.store.rows import dumps
from labeling_ui.store.store import Store, kinds_and_records
from labeling_ui.store.tables import answers, tasks
from reward_models.conversations import Turn
from reward_models.records import RankingTask, Record, assign, assign_names
from reward_models.row_files import optional_text, required_name, required_text

Shape = Literal["plain", "few-shot", "user-based"]


@dataclass(frozen=True, slots=True)
class TextTask(Record):
    """One text to be rated by itself, or against the prompt that it continues."""

    required = ("id", "text")
    id: str
    text: str
    prompt: str | None = None
    model: str | None = None
    context: str | None = None
    category: str | None = None
    history: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        required_text("text", self.text, empty=True)
        assign(
            self,
            id=required_name("id", self.id),
            prompt=optional_text("prompt", self.prompt),
            context=optional_text("context", self.context),
        )
        assign_names(self, "model", "category")


@dataclass(frozen=True, slots=True)
class WritingTask(Record):
    """Something to be written. Without `prompt` the annotator makes one up, in the given shape.

    The shapes are those of Ouyang et al. 2022, appendix A.1: `plain` is any task; `few-shot` an
    instruction with several queries and their responses; `user-based` follows a use case, told in
    `use_case`.
    """

    required = ("id",)
    id: str
    prompt: str | None = None
    shape: Shape = "plain"
    use_case: str | None = None
    context: str | None = None
    category: str | None = None
    history: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        assign(
            self,
            id=required_name("id", self.id),
            **{n: optional_text(n, getattr(self, n)) for n in ("prompt", "use_case", "context")},
        )
        assign_names(self, "category")
        if self.shape not in get_args(Shape):
            known = ", ".join(get_args(Shape))
            raise ValueError(f"'shape' is {self.shape!r}, expected one of {known}")
        if self.prompt is not None and self.shape != "plain":
            raise ValueError(
                f"task '{self.id}' gives a prompt, so its shape cannot be {self.shape}"
            )
        if self.shape == "user-based" and not self.use_case:
            raise ValueError(f"task '{self.id}' is user-based and tells no 'use_case'")


RoomTask = RankingTask | TextTask | WritingTask


def kind_of(name: str) -> TaskKind:
    """The kind of that name; ValueError for a name that an older or newer room may have stored."""
    kinds: tuple[TaskKind, ...] = get_args(TaskKind)
    for kind in kinds:
        if kind == name:
            return kind
    raise ValueError(f"a task is of kind '{name}', expected one of {', '.join(kinds)}")


def task_from(kind: TaskKind, row: Mapping[str, Any]) -> RoomTask:
    """The record of a task of that kind; ValueError says what is wrong with the row."""
    match kind:
        case "ranking" | "comparison" | "adjudication":
            task = RankingTask.from_json(row)
            if kind == "comparison" and len(task.responses) != 2:
                raise ValueError(f"task '{task.id}' has {len(task.responses)} responses, not 2")
            return task
        case "rating":
            return TextTask.from_json(row)
        case "demonstration" | "prompt":
            return WritingTask.from_json(row)


def add_room_tasks(
    store: Store,
    kind: TaskKind,
    new: Sequence[RoomTask],
    *,
    overlap: int = 1,
    priority: int = 0,
    is_open: bool = True,
) -> int:
    """Add tasks of one kind, those already there left alone; return how many were new.

    ValueError where one is there already that asks something else. One that is not open is handed
    out to nobody who does not ask for it by name.
    """
    with store.database.write() as connection:
        last = connection.execute(select(func.max(tasks.c.position))).scalar() or 0
        known = kinds_and_records(connection, [task.id for task in new])
        rows: dict[str, dict[str, Any]] = {}
        for task in new:
            record = dumps(task.to_json())
            there = known.setdefault(task.id, (kind, record))
            if there[0] != kind or json.loads(there[1]) != json.loads(record):
                raise ValueError(f"task '{task.id}' is already there with another text or kind")
            if there[1] is not record:
                continue
            rows[task.id] = {
                "id": task.id,
                "position": last + 1 + len(rows),
                "kind": kind,
                "category": task.category,
                "record": record,
                "overlap": overlap,
                "priority": priority,
                "is_open": int(is_open),
            }
        if rows:
            connection.execute(insert(tasks), list(rows.values()))
            data = {"count": len(rows), "kind": kind}
            store.log(connection, "store", "tasks added", None, data)
    return len(rows)


def answers_of(store: Store, kind: TaskKind) -> list[tuple[RoomTask, dict[str, Any]]]:
    """Tasks of one kind with the latest answer of each annotator; no skips, no surplus."""
    query = select(tasks.c.record.label("task"), answers.c.record.label("answer"))
    query = query.select_from(answers).join(tasks, tasks.c.id == answers.c.task)
    query = query.where(tasks.c.kind == kind, answers.c.is_latest == 1)
    query = query.where(answers.c.is_skip == 0, answers.c.is_surplus == 0).order_by(answers.c.id)
    with store.database.read() as connection:
        found = connection.execute(query).all()
    return [(task_from(kind, json.loads(row.task)), json.loads(row.answer)) for row in found]


def latest_answer(store: Store, task_id: str, annotator: str) -> dict[str, Any] | None:
    """What a person last said of a task, of whatever kind; None if nothing."""
    query = select(answers.c.record).where(answers.c.task == task_id, answers.c.is_latest == 1)
    with store.database.read() as connection:
        found = connection.execute(query.where(answers.c.annotator == annotator)).scalar()
    return None if found is None else dict(json.loads(found))
