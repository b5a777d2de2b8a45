"""Templates of the pages before sign-in, in the visitor's language: German or English.

The pages inside bring their own table (`board/translations.js`); these come before any script.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.templating import Jinja2Templates

BOARD = Path(__file__).parents[1] / "board"

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


def language_of(accepted: str) -> str:
    """Return the first language of an Accept-Language header if it is known, else English."""
    first = accepted.split(",")[0].split(";")[0].strip().lower()
    return "de" if first == "de" or first.startswith("de-") else "en"


def translator(language: str) -> Callable[[str], str]:
    """Return a function that gives a text in this language."""
    return lambda text: GERMAN.get(text, text) if language == "de" else text


def _language(request: Request) -> dict[str, Any]:
    language = language_of(request.headers.get("accept-language", ""))
    return {"language": language, "_": translator(language)}


templates = Jinja2Templates(BOARD / "html", context_processors=[_language])
