"""From a YAML file and `--set a.b=c` to an ExperimentConfig, or to one line saying what is wrong.

configs/quickstart.yaml: sft.learnin_rate is not a key; did you mean sft.learning_rate?
configs/quickstart.yaml: sft.epochs is 0; expected a whole number greater than 0
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import TypeAdapter, ValidationError

from pipeline.config.experiment import ExperimentConfig
from pipeline.config.messages import first_error
from pipeline.config.shipped import config_file
from reward_models.row_files import read_text

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """YAML in which `9e-6` is a number and no key stands twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key) for key in own]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.MarkedYAMLError(
                problem=f"key '{sorted(map(str, twice))[0]}' stands twice",
                problem_mark=node.start_mark,
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def load_config(path: Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read, override and check a config; raise ValueError in one line naming file and key."""
    return checked(load_mapping(path, overrides), str(path))


def load_mapping(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return a YAML file's mapping with overrides, still unchecked; ValueError in one line."""
    mapping = _parse(read_text(config_file(path)), str(path))
    if not isinstance(mapping, dict):
        raise ValueError(f"{path}: {type(mapping).__name__}; expected a mapping of keys to values")
    mapping = _unshared(mapping)
    for text in overrides:
        mapping = overridden(mapping, text)
    return cast(dict[str, Any], mapping)


def checked(mapping: Mapping[str, Any], where: str) -> ExperimentConfig:
    """Return the config of a mapping; ValueError in one line that begins with `where`."""
    return validated(ExperimentConfig, values=mapping, where=f"{where}: ")


def validated(
    kind: type[T],
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    where: str = "--set ",
) -> T:
    """Return settings of a kind from values and overrides; ValueError in one line."""
    mapping = dict(values or {})
    for text in overrides:
        mapping = overridden(mapping, text)
    try:
        return TypeAdapter(kind).validate_python(mapping)
    except ValidationError as error:
        raise ValueError(f"{where}{first_error(error, kind)}") from None


def overridden(mapping: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return a copy with the key that `text`, such as sft.epochs=2, names replaced.

    Mappings on the way are made; numbers index into lists.
    """
    name, equals, value = text.partition("=")
    *path, last = keys = name.strip().split(".")
    if not equals or not all(keys):
        raise ValueError(f"--set {text}: expected key.key=value, such as sft.epochs=2")
    copy = deepcopy(dict(mapping))
    holder: Any = copy
    for depth, key in enumerate(path, 1):
        if isinstance(holder, list):
            holder = holder[_index(holder, key, name)]
            continue
        if holder.get(key) is None:
            holder[key] = {}
        holder = holder[key]
        if not isinstance(holder, dict | list):
            above = ".".join(path[:depth])
            raise ValueError(f"--set {name}: {above} is {holder!r}, not a mapping")
    new = _parse(value, f"--set {text}")
    holder[_index(holder, last, name) if isinstance(holder, list) else last] = new
    return copy


def _index(items: list[Any], key: str, name: str) -> int:
    if not key.isdecimal() or int(key) >= len(items):
        raise ValueError(f"--set {name}: {key} is no position in a list of {len(items)}")
    return int(key)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{where}:{line}: not YAML ({error.problem})") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not YAML ({' '.join(str(error).split())})") from None


def _unshared(value: Any) -> Any:
    """Return a copy in which anchors share nothing, so that an override changes one place."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value
