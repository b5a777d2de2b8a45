"""The words at the door in other languages: what the browser asks for first, English else.

The pages inside bring their own table (`board/texts.js`); these come before any script.
"""

import html
from collections.abc import Iterable
from contextvars import ContextVar
from pathlib import Path

from fastapi.responses import HTMLResponse

BOARD = Path(__file__).parents[1] / "board"
language: ContextVar[str] = ContextVar("language", default="en")

GERMAN = {
    "Sign in": "Anmelden",
    "Labeling room": "Bewertungsraum",
    "Read a prompt, judge what was written for it, put it in order.": (
        "Aufgaben lesen, Antworten beurteilen, der Reihe nach ordnen."
    ),
    "Invitation": "Einladung",
    "Welcome": "Willkommen",
    "You are invited to the labeling room. Choose a name and a password.": (
        "Sie sind eingeladen. Wählen Sie einen Namen und ein Passwort."
    ),
    "At least 8 characters.": "Mindestens 8 Zeichen.",
    "Come in": "Eintreten",
    "Password": "Passwort",
    "A name is enough, unless it has a password.": "Ein Name genügt, wenn er kein Passwort hat.",
    "This name needs its password.": "Dieser Name braucht sein Passwort.",
    "Wrong name or password.": "Name oder Passwort stimmt nicht.",
    "You are signed in by the address you were given, not here.": (
        "Angemeldet werden Sie über die Adresse, die Sie bekommen haben, nicht hier."
    ),
    "too many wrong passwords; try again in a minute": (
        "zu viele falsche Passwörter; in einer Minute wieder"
    ),
    "this invitation was used already, or is too old": (
        "diese Einladung ist schon benutzt oder zu alt"
    ),
    "a name has 1 to 60 characters": "ein Name hat 1 bis 60 Zeichen",
    "a name holds no control or invisible characters": (
        "ein Name enthält keine Steuerzeichen oder unsichtbaren Zeichen"
    ),
    "a password has at least 8 characters": "ein Passwort hat mindestens 8 Zeichen",
}


def choose_language(accepted: str) -> None:
    """Take the first language of an Accept-Language header for this request, if it is known."""
    first = accepted.split(",")[0].split(";")[0].strip().lower()
    language.set("de" if first == "de" or first.startswith("de-") else "en")


def door_page(name: str, filled: Iterable[tuple[str, str]], status: int) -> HTMLResponse:
    """A page of the door with its blanks filled in; a name stays as it was typed."""
    text = page_said((BOARD / name).read_text(encoding="utf-8"))
    for key, value in filled:
        words = value if key == "name" else said(value)
        text = text.replace(f"[[{key}]]", html.escape(words))
    return HTMLResponse(text, status)


def said(words: str) -> str:
    """These words in the language of this request."""
    return GERMAN.get(words, words) if language.get() == "de" else words


def page_said(page: str) -> str:
    """A page of the door in the language of this request: whatever stands between its tags."""
    if language.get() != "de":
        return page
    for words, german in GERMAN.items():
        page = page.replace(f">{words}<", f">{german}<").replace(f">{words} ·", f">{german} ·")
    page = page.replace("· Labeling room<", f"· {GERMAN['Labeling room']}<")
    return page.replace('<html lang="en">', '<html lang="de">')
