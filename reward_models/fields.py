"""Checks of a record's values, which come from files and may be anything that JSON can hold."""

import math
from collections.abc import Mapping
from typing import Any

from reward_models.row_files import json_value

_FLAGS = {"true": True, "false": False}


def required_text(name: str, value: object, *, empty: bool = False) -> str:
    """The text; ValueError where it is none or, unless `empty`, blank."""
    if not isinstance(value, str):
        raise ValueError(f"'{name}' is {_kind(value)}, expected a string")
    if not empty and not value.strip():
        raise ValueError(f"'{name}' is empty")
    return value


def optional_text(name: str, value: object) -> str | None:
    """The text; None where it is null or blank."""
    if value is None:
        return None
    text = required_text(name, value, empty=True)
    return text if text.strip() else None


def required_name(name: str, value: object) -> str:
    """Return a required name; a whole number as text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return required_text(name, value)


def optional_name(name: str, value: object) -> str | None:
    """The same, None where it is null or blank."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return required_name(name, value)


def flag(name: str, value: object) -> bool | None:
    """Yes or no, in a table written as text; None where it is null or blank."""
    if value is None or isinstance(value, bool):
        return value
    text = value.strip().lower() if isinstance(value, str) else None
    if text is None or text not in {*_FLAGS, ""}:
        raise ValueError(f"'{name}' is {value!r:.40}, expected true or false")
    return _FLAGS.get(text)


def number(name: str, value: object) -> float | None:
    """A finite number, in a table written as text; None where it is null or blank."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        result = float(value) if isinstance(value, str) else value
    except ValueError:
        result = None
    if isinstance(result, bool) or not isinstance(result, int | float) or not math.isfinite(result):
        raise ValueError(f"'{name}' is {value!r:.40}, expected a number")
    return result


def whole_number(name: str, value: object) -> int:
    """The whole number, in a table perhaps written as text."""
    text = value.strip() if isinstance(value, str) else value
    if isinstance(text, str) and text.removeprefix("-").isdecimal() and len(text) < 20:
        return int(text)
    if isinstance(text, bool) or not isinstance(text, int):
        raise ValueError(f"'{name}' is {value!r:.40}, expected a whole number")
    return text


def mapping(name: str, value: object) -> Mapping[str, Any]:
    """An object, perhaps as JSON text; empty where it is null or blank."""
    if isinstance(value, str) and value.strip():
        value = json_value(value)
    if value in (None, ""):
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"'{name}' is {_kind(value)}, expected an object")
    return value


def whole_numbers(
    name: str, given: Mapping[str, Any], *, most: int | None = None
) -> dict[str, int]:
    """By response id a whole number from 1; null is none."""
    numbers: dict[str, int] = {}
    for response, value in given.items():
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


def name_lists(name: str, value: object) -> dict[str, list[str]]:
    """By response id a list of names; null is none."""
    flags: dict[str, list[str]] = {}
    for response, names in mapping(name, value).items():
        if names is None:
            continue
        if not isinstance(names, list | tuple):
            raise ValueError(
                f"'{name}' of response '{response}' is {_kind(names)}, expected a list"
            )
        flags[str(response)] = [required_name(name, one) for one in names]
    return flags


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
