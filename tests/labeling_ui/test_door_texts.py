"""The door speaks the visitor's language, and leaves what visitors typed alone."""

import re

import pytest

from labeling_ui.store.accounts import Accounts
from labeling_ui.store.store import Store
from labeling_ui.web import translations as door_texts
from labeling_ui.web.middleware import BOARD
from tests.labeling_ui.test_door import door


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
    page = door(Accounts(store)).get("/login", headers={"accept-language": asked}).text
    assert f'<html lang="{lang}">' in page
    assert f"<button>{words}</button>" in page


def test_what_is_wrong_is_said_in_german_and_the_name_stays_as_typed(store: Store) -> None:
    given = {"name": "Password", "password": "wrong"}
    asked = {"accept-language": "de"}
    page = door(Accounts(store)).post("/login", data=given, headers=asked).text
    assert "Name oder Passwort stimmt nicht." in page
    assert 'value="Password"' in page


@pytest.mark.parametrize("name", ["login.html", "invitation.html"])
def test_no_english_word_is_left_on_a_german_page(name: str) -> None:
    door_texts.choose_language("de")
    page = door_texts.page_said((BOARD / name).read_text(encoding="utf-8"))
    door_texts.choose_language("en")
    texts = re.findall(r">([^<>\[\]\n]*[A-Za-z][^<>\[\]\n]*)<", page.split("<body>")[1])
    assert texts
    assert set(texts) <= {*door_texts.GERMAN.values(), "Name"}
