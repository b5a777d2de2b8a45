"""The questions that annotators get about tasks of one kind: a YAML file, checked.

The default for rankings is the form of Ouyang et al. 2022 (section 3.4, tables 3 and 7, figure 12).
Whatever people read may be one text, or one for each language: `{en: Ambiguous, de: Mehrdeutig}`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from reward_models.row_files import read_text

PAGE_KEYS = "ngpqrx"  # note, guideline, prompt, start from quality, plain text, given text
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
Language = Annotated[str, StringConstraints(pattern=r"^[a-z]{2,3}$")]
Words = str | Annotated[Mapping[Language, str], Field(min_length=1)]
TaskKind = Literal["ranking", "comparison", "rating", "demonstration", "prompt", "adjudication"]


class FormPart(BaseModel):
    """A frozen model that forbids unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Scale(FormPart):
    """A question answered by a whole number from `lowest` to `highest`.

    A `relative` one compares with the prompt, and is not asked where there is none.
    """

    id: Name = "quality"
    text: Words
    lowest: int = 1
    highest: int = 7
    relative: bool = False
    low: Words = ""
    high: Words = ""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not 1 <= self.highest - self.lowest <= 9:
            raise ValueError(f"scale '{self.id}' goes from {self.lowest} to {self.highest}")
        return self


class Flag(FormPart):
    """A yes-or-no question. `good` marks those where yes is welcome."""

    id: Name
    text: Words
    key: Annotated[str, StringConstraints(pattern="^[a-z]$")] | None = None
    good: bool = False


class Form(FormPart):
    """All questions of a project. Without `quality` no overall rating is asked for."""

    name: str
    kind: TaskKind = "ranking"
    version: int = 1
    quality: Scale | None = None
    flags: tuple[Flag, ...] = ()
    scales: tuple[Scale, ...] = ()
    prompt_flags: tuple[Flag, ...] = ()
    prompt_scales: tuple[Scale, ...] = ()
    seed_from_quality: bool = True
    skip_reasons: tuple[Words, ...] = ("I cannot judge this",)
    guideline: Words = ""

    @model_validator(mode="after")
    def _names_and_keys_differ(self) -> Self:
        for part in (self.flags, self.prompt_flags):
            keys = [flag.key for flag in part if flag.key]
            for key in keys:
                if keys.count(key) > 1 or key in PAGE_KEYS:
                    raise ValueError(f"key '{key}' is used twice")
        if self.quality and (self.quality.lowest, self.quality.highest) != (1, 7):
            raise ValueError("quality is asked from 1 to 7, as rankings record it")
        names = [flag.id for flag in self.flags] + [scale.id for scale in self.scales]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"question '{name}' is asked twice")
        return self


def load_form(path: Path) -> Form:
    """Read a form; ValueError names the file, the key and what was found."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        return Form.model_validate(yaml.safe_load(read_text(path)))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        raise ValueError(f"{path}: {first_problem(error)}") from None


def default_form(kind: TaskKind = "ranking") -> Form:
    """Return the shipped form of a kind of task."""
    root = Path(__file__).parents[1]
    beside, installed = root / "configs", root / "pipeline" / "shipped_configs"
    folder = (beside if beside.is_dir() else installed) / "labeling"
    return load_form(folder / f"{'instructgpt' if kind == 'ranking' else kind}.yaml")


def forms_with(form: Form | None) -> dict[TaskKind, Form]:
    """Return the form of every kind of task: the default ones, and `form` in place of one."""
    own = {} if form is None else {form.kind: form}
    kinds: tuple[TaskKind, ...] = get_args(TaskKind)
    return {kind: own[kind] if kind in own else default_form(kind) for kind in kinds}


def first_language(words: Words) -> str:
    """Return the text, of several languages the first; answers name questions by it."""
    return words if isinstance(words, str) else next(iter(words.values()))


def first_problem(error: ValidationError) -> str:
    """Return the first thing that is wrong, as one line."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"]) or "form"
    return f"{where}: {problem['msg']}"
