"""Pages and error messages are in the visitor's language, and leave what visitors typed alone."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import labeling_ui
from labeling_ui.store.accounts import Accounts
from labeling_ui.store.store import Store
from labeling_ui.web.sign_in import BOARD, GERMAN
from tests.labeling_ui.web.test_sign_in import site

HERE = Path(labeling_ui.__file__).parent
MODULES = (
    *("tasks/answers", "tasks/assignment", "store/leases", "store/withdrawal"),
    *("tasks/adjudication", "tasks/live", "web/owner", "web/room"),
)
# Only a request that no page of ours sends is answered so.
OTHERS = (
    *("is not a short text", "is not a whole number", "is not an object"),
    "are not the numbers of two outputs",
)
TABLE = re.compile(r"\[/(.+)/, \"(.+)\"\]")


@pytest.mark.parametrize(
    ("accepted", "lang", "words"),
    [
        ("de-AT,en;q=0.5", "de", "Anmelden"),
        ("en-US,de;q=0.9", "en", "Sign in"),
        ("", "en", "Sign in"),
    ],
)
def test_the_log_in_speaks_the_language_asked_for(
    store: Store, accepted: str, lang: str, words: str
) -> None:
    page = site(Accounts(store)).get("/login", headers={"accept-language": accepted}).text
    assert f'<html lang="{lang}">' in page
    assert f"<button>{words}</button>" in page


def test_what_is_wrong_is_said_in_german_and_the_name_stays_as_typed(store: Store) -> None:
    given = {"name": "Password", "password": "wrong"}
    headers = {"accept-language": "de"}
    page = site(Accounts(store)).post("/login", data=given, headers=headers).text
    assert "Name oder Passwort stimmt nicht." in page
    assert 'value="Password"' in page


@pytest.mark.parametrize("path", ["/login", "/invitation"])
def test_no_english_word_is_left_on_a_german_page(store: Store, path: str) -> None:
    reply = site(Accounts(store), "name").get(path, headers={"accept-language": "de"})
    texts = re.findall(r">\s*([^<>\n]*[A-Za-z][^<>\n]*)<", reply.text.split("<body>")[1])
    assert len(texts) > 4
    assert set(texts) <= {*GERMAN.values(), "Name"}


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
    assert sum(len(list(refusals(module))) for module in MODULES) > 20


@pytest.mark.parametrize("module", MODULES)
def test_every_refusal_of_the_room_has_its_german_sentence(module: str) -> None:
    table = TABLE.findall((BOARD / "js" / "translations.js").read_text(encoding="utf-8"))
    for sentence in refusals(module):
        if sentence.endswith(OTHERS):
            continue
        matches = [(pattern, text) for pattern, text in table if re.search(pattern, sentence)]
        assert len(matches) == 1, sentence
        [(pattern, text)] = matches
        assert {int(n) for n in re.findall(r"{(\d)}", text)} <= set(
            range(1, re.compile(pattern).groups + 1)
        )
