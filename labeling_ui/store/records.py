"""The kinds of tasks: rankings, texts to rate, demonstrations and prompts to write, pairs to judge.

They lie in one table, told apart by `kind`, and are leased, drafted, sent and amended alike. Only
the questions and the answers differ.

    ranking        a RankingTask  ->  a Ranking
    comparison     a RankingTask of two policies' outputs  ->  a Ranking of two
    rating         a TextTask  ->  the form's scales and flags
    demonstration  a WritingTask  ->  a response, and a prompt where none is given
    prompt         a WritingTask  ->  a prompt
    adjudication   a RankingTask that others have ranked  ->  the Ranking that counts
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from labeling_ui.forms import TaskKind
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
    """Return the kind of that name; ValueError for a name that another version has stored."""
    kinds: dict[str, TaskKind] = {kind: kind for kind in get_args(TaskKind)}
    if name not in kinds:
        raise ValueError(f"a task is of kind '{name}', expected one of {', '.join(kinds)}")
    return kinds[name]


def task_from(kind: TaskKind, row: Mapping[str, Any]) -> RoomTask:
    """Return the task that a row holds; ValueError says what is wrong with it."""
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


def flag_answers(row: Mapping[str, Any]) -> dict[str, dict[str, bool]]:
    """Return yes or no to every flag that a ranking's row answers, by response."""
    answers: dict[str, dict[str, bool]] = {}
    for key, value in (("flags", True), ("flags_no", False)):
        for response, flags in row.get(key, {}).items():
            answers.setdefault(response, {}).update(dict.fromkeys(flags, value))
    return answers
