"""One line for a mistake: out of a pydantic error, or for an extra that is not installed."""

import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Location = tuple[int | str, ...]


def require(extra: str, *modules: str) -> None:
    """Raise ValueError in one line where a module that an extra installs is missing."""
    for module in modules:
        if find_spec(module) is None:
            raise ValueError(
                f"{module} is not installed; expected: pip install 'instruct-rlhf[{extra}]'"
            )


def first_error(error: ValidationError, model: type[Any]) -> str:
    """Return the first error in one line, and the number of further ones."""
    details = error.errors(include_url=False)
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return _sentence(details[0], model) + more


def _sentence(detail: ErrorDetails, model: type[Any]) -> str:
    location, tags = _without_tags(detail["loc"], model)
    key = ".".join(map(str, location))
    context = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            return _unknown(location, tags)
        case "missing":
            return f"{key} is missing"
        case "union_tag_invalid":
            name = str(context["discriminator"]).strip("'")
            choices = _plain(str(context["expected_tags"]))
            return f"{_dotted(key, name)} is '{context['tag']}'; expected one of {choices}"
        case "union_tag_not_found":
            return f"{_dotted(key, str(context['discriminator']).strip(chr(39)))} is missing"
        case "value_error":
            text = str(context["error"])
            return f"{key}: {text}" if key else text
        case "literal_error" | "enum":
            return f"{key} is {detail['input']!r}; expected {_plain(context['expected'])}"
        case _:
            return f"{key} is {_short(detail['input'])}; expected {_expected(detail['msg'])}"


def _unknown(location: Location, holder: type[Any] | None) -> str:
    *parents, name = map(str, location)
    key = ".".join((*parents, name))
    known = [] if holder is None else list(_annotations(holder))
    renamed: Mapping[str, str] = getattr(holder, "renamed", {})  # a Config's or a dataclass's
    if name in renamed:
        return f"{key} is called {'.'.join((*parents, renamed[name]))} since version 0.2"
    near = get_close_matches(name, known, n=1)
    if near:
        return f"{key} is not a key; did you mean {'.'.join((*parents, near[0]))}?"
    return f"{key} is not a key; expected one of {', '.join(known)}"


def _without_tags(location: Location, model: type[Any]) -> tuple[Location, type[Any] | None]:
    """Return the location as in the file (without union tags), and the class that holds it."""
    keys: list[int | str] = []
    options: list[Any] = [model]
    holder: type[Any] | None = model
    for part in location:
        holder = next((kind for kind in options if _is_class(kind)), None)
        children = [kind for option in options for kind in _children(option, part)]
        tagged = [kind for kind in options if part in _tags(kind)]
        if not children and len(tagged) < len(options) and tagged:
            options = tagged
            continue
        keys.append(part)
        options = children
    return tuple(keys), holder


def _children(option: Any, part: int | str) -> Iterator[Any]:
    """Yield the types under a key of a class, or at an index of a list."""
    if isinstance(part, str) and _is_class(option):
        annotations = _annotations(option)
        if part in annotations:
            yield from _unfolded(annotations[part])
    elif isinstance(part, int):
        for inner in get_args(option):
            yield from _unfolded(inner)


def _unfolded(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _unfolded(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for inner in get_args(annotation):
            yield from _unfolded(inner)
    elif annotation is not types.NoneType:
        yield annotation


def _is_class(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, BaseModel) or is_dataclass(kind))


def _annotations(kind: Any) -> dict[str, Any]:
    if issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    return {field.name: field.type for field in fields(kind)}


def _tags(kind: Any) -> set[Any]:
    """Return a union's names for this class: its own, or a text among its Literal fields."""
    if not _is_class(kind):
        return set()
    texts = {
        text
        for note in _annotations(kind).values()
        for text in get_args(note)
        if isinstance(text, str)
    }
    return {kind.__name__, *texts}


def _dotted(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _plain(listed: str) -> str:
    return listed.replace("'", "").replace(" or ", ", ")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _expected(message: str) -> str:
    message = message.removeprefix("Input should be ")
    for kind in ("String", "List", "Tuple"):
        message = message.replace(f"{kind} should ", "to ", 1)
    text = message.split(", unable to parse")[0].split(", got a number")[0]
    return text.replace("a valid integer", "a whole number").replace("a valid number", "a number")
