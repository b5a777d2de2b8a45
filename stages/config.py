"""The base class of configs, and the values that name a file, a model or a data set."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OptimizerName = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]  # 8 bits: bitsandbytes
HUB = "hf:"  # before the name of a data set of the hub


class Config(BaseModel):
    """The base of every config: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    renamed: ClassVar[Mapping[str, str]] = {}  # keys of earlier versions, and their names now


@dataclass(frozen=True, slots=True)
class ExternalName:
    """Marks a value that names something outside the config.

    A stage's result depends on the content of what is named, not on the name: see
    `pipeline/runs/manifest.py`. With `decides` false the result does not depend on it.
    """

    what: Literal["file", "model", "data"]
    decides: bool = True
    words: tuple[str, ...] = ()  # values that name nothing outside


def expand_home(text: str) -> str:
    """Return the text with the home folder in place of a leading `~`, also after `hf:`."""
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
    """Yield each value of a config that names something, with its keys and its marker."""
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
    """Return keys as text: `evaluation.bias.pairs 1` is the first of a list."""
    parts = (f" {part + 1}" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")


def without_external_names(config: BaseModel) -> dict[str, Any]:
    """Return the config as JSON without external names: paths do not change a fingerprint."""
    plain = config.model_dump(mode="json")
    for path, _, _ in external_names(config):
        holder: Any = plain
        for part in path[:-1]:
            holder = holder[part]
        holder[path[-1]] = None
    return plain


def _inside(value: object, above: Keys) -> Iterator[tuple[Keys, ExternalName, str]]:
    """Yield the external names in the configs that a field holds."""
    if isinstance(value, BaseModel):
        yield from external_names(value, above)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _inside(item, (*above, number))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _inside(item, (*above, str(key)))


def _marker(kind: type[BaseModel], name: str) -> ExternalName | None:
    """Return the marker of a field, which may be inside its optional or list type."""
    field = kind.model_fields[name]
    return _first_marker([*field.metadata, field.annotation])


def _first_marker(parts: Sequence[Any]) -> ExternalName | None:
    for part in parts:
        if isinstance(part, ExternalName):
            return part
        inner = get_args(part) if get_origin(part) is not Literal else ()
        if (marker := _first_marker(inner)) is not None:
            return marker
    return None
