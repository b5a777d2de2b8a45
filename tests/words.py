"""Names and docstrings that do not speak the field's language.

`python -m tests.words` prints every one; `python -m tests.words stages/ppo` those below a folder.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("pipeline", "stages", "reward_models", "labeling_ui", "tests")

# A name that is one of these says nothing about its value: `config`, `output`, `metrics`, `row` do.
EMPTY = frozenset(
    {"found", "place", "places", "said", "says", "say", "told", "tell", "tells", "asked", "asks"}
    | {"kept", "keeps", "mine", "heard", "hears", "shown", "heed", "foretell", "foretold"}
    | {"remark", "remarks", "choosing", "by_name"}
)
# Parts of a name for which the field has another word, and that word.
OTHERS = {
    "trunk": "backbone",
    "trunks": "backbones",
    "carrier": "backbone",
    "carriers": "backbones",
    "sickness": "instability",
    "sick": "unstable",
    "curable": "recoverable",
    "crew": "ranks",
    "conduct": "runner",
    "anatomy": "estimate",
    "lineage": "manifest",
    "foretell": "estimate",
    "foretold": "estimate",
    "heed": "check",
    "told": "the value's name",
    "asked": "the value's name",
    "demands": "estimate",
    "whereabouts": "path",
    "door": "sign-in",
    "doors": "sign-in",
}
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
QUESTIONS = frozenset({"what", "who", "how", "whether", "of", "where", "when", "which", "whose"})


@dataclass(frozen=True)
class Offender:
    """A line of a file, and the reason why it is listed."""

    path: Path
    line: int
    kind: str  # "name" or "docstring"
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Words:
    """The bound names and docstrings of some files, counted, and those that offend."""

    names: int
    docstrings: int
    offenders: tuple[Offender, ...]

    def of_kind(self, kind: str) -> list[Offender]:
        """Return the offenders of a kind."""
        return [offender for offender in self.offenders if offender.kind == kind]


def words(files: list[Path]) -> Words:
    """Count the names bound in `files` (one a scope) and their docstrings, and list offenders."""
    names = docstrings = 0
    offenders = []
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name, line in bound_names(tree):
            names += 1
            if complaint := about_name(name):
                offenders.append(Offender(path, line, "name", complaint))
        for node in ast.walk(tree):
            if not isinstance(node, DOCUMENTED):
                continue
            if docstring := ast.get_docstring(node):
                docstrings += 1
                first = docstring.split(maxsplit=1)[0].strip(",:;.?'\"").lower()
                if first in QUESTIONS:
                    text = f'a docstring begins with a question: "{docstring.splitlines()[0]}"'
                    line = node.body[0].lineno
                    offenders.append(Offender(path, line, "docstring", text))
    return Words(names, docstrings, tuple(offenders))


def about_name(name: str) -> str | None:
    """Return the complaint about a bound name, or None."""
    plain = name.strip("_").lower()
    if plain in EMPTY:
        return f"`{name}`: say what the value is"
    for part in plain.split("_"):
        if part in OTHERS:
            return f"`{name}`: rather {OTHERS[part]}"
    return None


def bound_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield every name that a file binds, once a scope, and its first line.

    Variables, arguments, functions, classes, attributes that are assigned; neither imports nor a
    test's own name, which is a sentence.
    """
    yield from _bound_in_scope(tree.body)


def _bound_in_scope(body: Sequence[ast.AST]) -> Iterator[tuple[str, int]]:
    first_lines: dict[str, int] = {}
    inner: list[Sequence[ast.AST]] = []
    nodes: list[ast.AST] = list(body)
    while nodes:
        node = nodes.pop()
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                if not node.name.startswith("test_"):
                    first_lines.setdefault(node.name, node.lineno)
                inner.append([node.args, *node.body])
                nodes.extend(node.decorator_list)
                continue
            case ast.ClassDef():
                first_lines.setdefault(node.name, node.lineno)
                inner.append(node.body)
                continue
            case ast.Lambda():
                inner.append([node.args, node.body])
                continue
            case ast.arg():
                first_lines.setdefault(node.arg, node.lineno)
            case ast.Name(ctx=ast.Store()):
                first_lines.setdefault(node.id, node.lineno)
            case ast.Attribute(ctx=ast.Store()):
                first_lines.setdefault(node.attr, node.lineno)
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                first_lines.setdefault(name, node.lineno)
            case ast.ExceptHandler(name=str(name)):
                first_lines.setdefault(name, node.lineno)
        nodes.extend(ast.iter_child_nodes(node))
    yield from first_lines.items()
    for scope in inner:
        yield from _bound_in_scope(scope)


def python_files(*folders: str) -> list[Path]:
    """Return the Python files below `folders`, or those folders themselves where they are files."""
    files: list[Path] = []
    for folder in folders or FOLDERS:
        path = ROOT / folder
        files += [path] if path.is_file() else sorted(path.rglob("*.py"))
    return files


def main() -> None:
    """Print the offenders below the folders of the command line, and a count."""
    result = words(python_files(*sys.argv[1:]))
    for offender in sorted(result.offenders, key=lambda each: (each.path, each.line)):
        print(offender)
    names, docstrings = len(result.of_kind("name")), len(result.of_kind("docstring"))
    print(
        f"{names} of {result.names} bound names ({100 * names / max(result.names, 1):.2f} %), "
        f"{docstrings} of {result.docstrings} docstrings "
        f"({100 * docstrings / max(result.docstrings, 1):.2f} %)"
    )


if __name__ == "__main__":
    main()
