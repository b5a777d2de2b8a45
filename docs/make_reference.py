"""The reference of commands and of configs, made from the code: docs/reference/*.md.

    python docs/make_reference.py [FOLDER]

`rlhf`'s typer app describes its verbs. A config's key is described by its annotation, its default
and the comment beside it, in the class that checks it.
"""

import ast
import inspect
import io
import json
import re
import sys
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from typer.cli import get_docs_for_click
from typer.main import get_command

ROOTS = (  # module, class, and what its files are for
    ("pipeline.config.experiment", "ExperimentConfig", "The file that `rlhf run` takes."),
    ("pipeline.config.labeling", "RoomSettings", "The file that `rlhf room` takes."),
    ("labeling_ui.forms", "Form", "The file that `labeling.form` names."),
    ("pipeline.studies.robustness.config", "RobustnessConfig", "The file of `--suite robustness`."),
)
CONFIG_PAGE = """# Configs

Made from the code by `make docs`. Every key may be set in the YAML file, or on the command line by
`--set KEY.KEY=VALUE`; a key that is unknown is refused in one line. A type that is itself a config
has its own section. `configs/quickstart.yaml` is an example in which every key is explained.
"""


def main() -> None:
    """Write both pages into docs/reference, or into the folder of the command line."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "reference")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Return the text of each page, by the name of its file."""
    return {"commands.md": commands(), "configs.md": configs()}


def commands() -> str:
    """Return the reference of the command line, as typer itself writes it."""
    import typer

    from pipeline.cli.app import app

    command = get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="rlhf")
    return text.replace("# `rlhf`\n", "# Commands\n\nMade from the code by `make docs`.\n", 1)


def configs() -> str:
    """Return a section for each config class that a file can hold, outermost first."""
    parts = [CONFIG_PAGE]
    written: set[type[BaseModel]] = set()
    for module, name, about in ROOTS:
        root = getattr(__import__(module, fromlist=[name]), name)
        for model in _models_below(root):
            if model not in written:
                written.add(model)
                parts.append(_section(model, about if model is root else ""))
    return "\n".join(parts)


def _models_below(root: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield a config class and those its fields may hold, each once, breadth first."""
    queue, seen = [root], {root}
    while queue:
        model = queue.pop(0)
        yield model
        for field in model.model_fields.values():
            for inner in _models_in(field.annotation):
                if inner not in seen:
                    seen.add(inner)
                    queue.append(inner)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _section(model: type[BaseModel], about: str) -> str:
    lines = [f"## {model.__name__}", "", inspect.getdoc(model) or "", ""]
    if about:
        lines[2:2] = [about, ""]
    rows = list(_fields(model))
    if rows:
        lines += ["| key | type | default | |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(cell.replace(' | ', ' or ') for cell in row)} |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, str, str, str]]:
    """Yield key, type, default and comment of each field, as they stand in the class's source."""
    rows: dict[str, tuple[str, str, str, str]] = {}  # a subclass's own field replaces a base's
    for owner in reversed(model.__mro__):
        if not (issubclass(owner, BaseModel) and owner is not BaseModel):
            continue
        source = textwrap.dedent(inspect.getsource(owner))
        comments = _comments(source)
        definition = ast.parse(source).body[0]
        assert isinstance(definition, ast.ClassDef)
        for node in definition.body:
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
                continue
            field = model.model_fields.get(node.target.id)
            if field is None:
                continue
            links = [
                f"[{inner.__name__}](#{inner.__name__.lower()})"
                for inner in dict.fromkeys(_models_in(field.annotation))
            ]
            kind = ", ".join(links) or f"`{ast.unparse(node.annotation)}`".replace("None", "null")
            default = _default(node.value)
            key = f"`{field.alias or node.target.id}`"
            rows[key] = (key, kind, default, _comment(node, comments))
    yield from rows.values()


def _default(value: ast.expr | None) -> str:
    """Return a default as YAML has it; that of a config class is in the class's own section."""
    match value:
        case None:
            return "required"
        case ast.Constant():
            return f"`{json.dumps(value.value)}`"
        case ast.Call(args=[], keywords=[]):
            return "its defaults"
        case _:
            return f"`{ast.unparse(value)}`"


def _comments(source: str) -> dict[int, tuple[bool, str]]:
    """Return the comment on each line, and whether it stands there alone."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: (token.line.lstrip().startswith("#"), token.string.lstrip("# "))
        for token in tokens
        if token.type == tokenize.COMMENT and not token.string.startswith(("# noqa", "# type:"))
    }


def _comment(node: ast.AnnAssign, comments: dict[int, tuple[bool, str]]) -> str:
    above: list[str] = []
    line = node.lineno - 1
    while comments.get(line, (False, ""))[0]:
        above.insert(0, comments[line][1])
        line -= 1
    beside = [
        comments[line][1]
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        if line in comments
    ]
    text = re.sub(r"\bNone\b", "null", " ".join([*above, *beside]))
    return text[:1].upper() + text[1:] if text else ""


if __name__ == "__main__":
    main()
