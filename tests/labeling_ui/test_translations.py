"""The sign-in pages are in the visitor's language, and leave what visitors typed alone."""

import re

import pytest

from labeling_ui.store.accounts import Accounts
from labeling_ui.store.store import Store
from labeling_ui.web.translations import GERMAN
from tests.labeling_ui.test_sign_in import site


@pytest.mark.parametrize(
    ("asked", "lang", "words"),
    [
        ("de-AT,en;q=0.5", "de", "Anmelden"),
        ("en-US,de;q=0.9", "en", "Sign in"),
        ("", "en", "Sign in"),
    ],
)
def test_the_log_in_speaks_the_language_asked_for(
    store: Store, asked: str, lang: str, words: str
) -> None:
    page = site(Accounts(store)).get("/login", headers={"accept-language": asked}).text
    assert f'<html lang="{lang}">' in page
    assert f"<button>{words}</button>" in page


def test_what_is_wrong_is_said_in_german_and_the_name_stays_as_typed(store: Store) -> None:
    given = {"name": "Password", "password": "wrong"}
    asked = {"accept-language": "de"}
    page = site(Accounts(store)).post("/login", data=given, headers=asked).text
    assert "Name oder Passwort stimmt nicht." in page
    assert 'value="Password"' in page


@pytest.mark.parametrize("path", ["/login", "/invitation"])
def test_no_english_word_is_left_on_a_german_page(store: Store, path: str) -> None:
    reply = site(Accounts(store), "name").get(path, headers={"accept-language": "de"})
    texts = re.findall(r">\s*([^<>\n]*[A-Za-z][^<>\n]*)<", reply.text.split("<body>")[1])
    assert len(texts) > 4
    assert set(texts) <= {*GERMAN.values(), "Name"}
