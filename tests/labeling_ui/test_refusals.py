"""What the room refuses with is said in German where the page is."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import labeling_ui
from labeling_ui.web.translations import BOARD

HERE = Path(labeling_ui.__file__).parent
ASKED = (
    *("tasks/answers", "tasks/assignment", "store/leases", "tasks/live"),
    *("tasks/adjudication", "web/owner", "web/room"),
)
# Only a request that no page of ours sends is answered so.
OTHERS = ("is not a short text", "is not a whole number", "is not an object")
TABLE = re.compile(r"\[/(.+)/, \"(.+)\"\]")


def refusals(module: str) -> Iterator[str]:
    """The sentences that a module raises, with 7 for whatever varies."""
    for node in ast.walk(ast.parse((HERE / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            match node.exc.args[0]:
                case ast.Constant(value=str(text)):
                    yield text
                case ast.JoinedStr(values=parts):
                    yield "".join(
                        str(part.value) if isinstance(part, ast.Constant) else "7" for part in parts
                    )


def test_the_room_has_sentences_to_refuse_with() -> None:
    assert sum(len(list(refusals(module))) for module in ASKED) > 20


@pytest.mark.parametrize("module", ASKED)
def test_every_refusal_of_the_room_has_its_german_sentence(module: str) -> None:
    table = TABLE.findall((BOARD / "js" / "translations.js").read_text(encoding="utf-8"))
    for sentence in refusals(module):
        if sentence.endswith(OTHERS):
            continue
        said = [(pattern, text) for pattern, text in table if re.search(pattern, sentence)]
        assert len(said) == 1, sentence
        [(pattern, text)] = said
        assert {int(n) for n in re.findall(r"{(\d)}", text)} <= set(
            range(1, re.compile(pattern).groups + 1)
        )
