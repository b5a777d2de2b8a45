"""The base class of configs, and the texts of a config that name a file, a model or a data set."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
HUB = "hf:"  # before the name of a data set of the hub


class Config(BaseModel):
    """The base of every config: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    renamed: ClassVar[Mapping[str, str]] = {}  # keys of earlier versions, and their names now


@dataclass(frozen=True, slots=True)
class ExternalName:
    """Marks a text that names something outside the config.

    A stage's result depends on the content of what is named, not on the name: see
    `pipeline/runs/manifest.py`. Where it does not `decide`, it is about how a stage is done.
    """

    what: Literal["file", "model", "data"]
    decides: bool = True
    words: tuple[str, ...] = ()  # texts that name nothing outside


def expand_home(text: str) -> str:
    """The text with the home folder in place of a leading `~`, also after `hf:`."""
    prefix = HUB if text.startswith(HUB) else ""
    return prefix + os.path.expanduser(text.removeprefix(prefix))  # noqa: PTH111 - may be a URL


FilePath = Annotated[str, AfterValidator(expand_home), ExternalName("file")]
ServedFile = Annotated[str, AfterValidator(expand_home), ExternalName("file", decides=False)]
ModelName = Annotated[
    str, AfterValidator(expand_home), ExternalName("model")
]  # or a model's folder
DataSource = Annotated[str, AfterValidator(expand_home), ExternalName("data")]  # a file, or hf:NAME


Keys = tuple[str | int, ...]  # keys of mappings and numbers in lists, outermost first


def external_names(config: BaseModel, above: Keys = ()) -> Iterator[tuple[Keys, ExternalName, str]]:
    """Each text in a config that names something, with where it stands and its marker."""
    for name, value in config:
        marker = _marker(type(config), name)
        if marker is None:
            yield from _inside(value, (*above, name))
        elif isinstance(value, str):
            if value not in marker.words:
                yield (*above, name), marker, value
        elif value is not None:
            yield from (((*above, name, n), marker, text) for n, text in enumerate(value))


def key_path(path: Keys) -> str:
    """A place in a config for people: `evaluation.bias.pairs 1` is the first of a list."""
    parts = (f" {part + 1}" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")


def without_external_names(config: BaseModel) -> dict[str, Any]:
    """The config as JSON without what `named` yields: paths in it do not change a fingerprint."""
    plain = config.model_dump(mode="json")
    for path, _, _ in external_names(config):
        holder: Any = plain
        for part in path[:-1]:
            holder = holder[part]
        holder[path[-1]] = None
    return plain


def _inside(value: object, above: Keys) -> Iterator[tuple[Keys, ExternalName, str]]:
    """The named texts of the configs that a field holds."""
    if isinstance(value, BaseModel):
        yield from external_names(value, above)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _inside(item, (*above, number))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _inside(item, (*above, str(key)))


def _marker(kind: type[BaseModel], name: str) -> ExternalName | None:
    """The marker of a field, which may stand inside its optional or list type."""
    field = kind.model_fields[name]
    return _first_marker([*field.metadata, field.annotation])


def _first_marker(parts: Sequence[Any]) -> ExternalName | None:
    for part in parts:
        if isinstance(part, ExternalName):
            return part
        inner = get_args(part) if get_origin(part) is not Literal else ()
        found = _first_marker(inner)
        if found is not None:
            return found
    return None
