"""From a YAML file and `--set a.b=c` to an ExperimentConfig, or to one line saying what is wrong.

configs/quickstart.yaml: sft.learnin_rate is not a key; did you mean sft.learning_rate?
configs/quickstart.yaml: sft.epochs is 0; expected a whole number greater than 0
"""

import re
from collections.abc import Hashable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from pipeline.config.experiment import ExperimentConfig
from pipeline.config.messages import first_error
from pipeline.config.shipped import config_file
from reward_models.row_files import read_text


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: `9e-6` is a number, and no key stands twice in one mapping."""

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
    """A YAML file's mapping with overrides, still unchecked; ValueError in one line."""
    mapping = _parse(read_text(config_file(path)), str(path))
    if not isinstance(mapping, dict):
        raise ValueError(f"{path}: {type(mapping).__name__}; expected a mapping of keys to values")
    mapping = _unshared(mapping)
    for text in overrides:
        mapping = overridden(mapping, text)
    return cast(dict[str, Any], mapping)


def checked(mapping: dict[str, Any], where: str) -> ExperimentConfig:
    """The config of a mapping; raise ValueError in one line that begins with `where`."""
    try:
        return ExperimentConfig.model_validate(mapping)
    except ValidationError as error:
        raise ValueError(f"{where}: {first_error(error, ExperimentConfig)}") from None


def overridden(mapping: dict[str, Any], text: str) -> dict[str, Any]:
    """A copy of the mapping with the one key that `text`, such as sft.epochs=2, names replaced."""
    return _replaced(mapping, _Override.parse(text))


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{where}:{line}: not YAML ({error.problem})") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not YAML ({' '.join(str(error).split())})") from None


def _unshared(value: Any) -> Any:
    """A copy in which what YAML's anchors share is separate, so that overriding one is no more."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class _Override:
    keys: tuple[str, ...]
    value: Any

    @classmethod
    def parse(cls, text: str) -> "_Override":
        name, equals, value = text.partition("=")
        keys = tuple(name.strip().split("."))
        if not equals or not all(keys):
            raise ValueError(f"--set {text}: expected key.key=value, such as sft.epochs=2")
        return cls(keys, _parse(value, f"--set {text}"))


def _replaced(mapping: dict[str, Any], override: _Override) -> dict[str, Any]:
    """A copy with one value replaced; mappings on the way are made, numbers index into lists."""
    result = deepcopy(mapping)
    here: Any = result
    *path, last = override.keys
    for depth, key in enumerate(path, 1):
        if isinstance(here, list):
            here = here[_index(here, key, override)]
            continue
        if here.get(key) is None:
            here[key] = {}
        here = here[key]
        if not isinstance(here, dict | list):
            above = ".".join(path[:depth])
            raise ValueError(f"--set {'.'.join(override.keys)}: {above} is {here!r}, not a mapping")
    if isinstance(here, list):
        here[_index(here, last, override)] = override.value
    else:
        here[last] = override.value
    return result


def _index(items: list[Any], key: str, override: _Override) -> int:
    if not key.isdecimal() or int(key) >= len(items):
        raise ValueError(
            f"--set {'.'.join(override.keys)}: {key} is no place in a list of {len(items)}"
        )
    return int(key)
