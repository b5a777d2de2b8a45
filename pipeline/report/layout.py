"""The content of a page, and its rendering: sections of headings, figures and tables.

A section's parts are records; templates/parts.html.j2 draws each by its `kind`. Nothing here or in
the sections is HTML: the templates escape every text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.report.figures import Figure
from reward_models.atomic_files import written_aside


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading inside a section."""

    kind: ClassVar[str] = "heading"
    text: str
    small: str = ""


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A sentence or more."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True, slots=True)
class Notes:
    """A list of sentences."""

    kind: ClassVar[str] = "notes"
    texts: Sequence[str]


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures side by side, one to three in a row where there is room."""

    kind: ClassVar[str] = "figures"
    figures: Sequence[Figure]
    columns: str = "two"


@dataclass(frozen=True, slots=True)
class Entry:
    """One cell of a table: a text, its interval below, and a change that may be significant."""

    text: str
    small: str = ""
    change: str = ""
    significant: bool = False
    role: str = ""  # `verdict`, `code` or `head`


Row = Sequence[Entry | str]


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose first column heads its rows; it scrolls sideways where it is too wide.

    A `folded` table opens behind its label.
    """

    kind: ClassVar[str] = "table"
    heads: Sequence[str]
    rows: Sequence[Row]
    label: str = ""
    style: str = ""
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """One policy's output on a card."""

    model: str
    text: str
    marks: Sequence[str]
    is_toxic: bool


@dataclass(frozen=True, slots=True)
class Card:
    """A prompt with the output of every policy; `marks` are what the page's filter knows of it."""

    group: str
    label: str
    turns: Sequence[tuple[str, str]]  # role and text
    passage: str
    prompt: str
    answers: Sequence[Answer]
    marks: Sequence[str]


@dataclass(frozen=True, slots=True)
class Cards:
    """Outputs side by side, and the filters above them."""

    kind: ClassVar[str] = "cards"
    cards: Sequence[Card]
    groups: Sequence[tuple[str, str]]  # value and label
    marks: Sequence[str]


Part = Heading | Paragraph | Notes | Figures | Table | Cards


@dataclass(frozen=True, slots=True)
class Section:
    """A section with an anchor; `link` is its name in the navigation."""

    anchor: str
    title: str
    about: str
    parts: Sequence[Part]
    link: str = ""


@dataclass(frozen=True, slots=True)
class Tile:
    """One number at the top of the page, beside those it has to be compared with."""

    title: str
    value: str
    interval: str
    beside: str
    verdicts: Sequence[str]


@dataclass(frozen=True, slots=True)
class Page:
    """A self-contained page. `banners` are pairs of a warning and its explanation."""

    title: str
    name: str
    kicker: str
    under: str
    sections: Sequence[Section]
    banners: Sequence[tuple[str, str]] = ()
    tiles: Sequence[Tile] = ()
    name_width: int = 13  # characters, of the column with models' names


def section(
    anchor: str, title: str, about: str, *parts: Part | None, link: str = ""
) -> Section | None:
    """Return a section of the parts that are there, or None where there are none."""
    filled = [part for part in parts if part is not None]
    return Section(anchor, title, about, filled, link) if filled else None


def grid(*figures: Figure | None, columns: str = "two") -> Figures | None:
    """Return the figures that are there side by side, or None where there are none."""
    drawn = [figure for figure in figures if figure is not None]
    return Figures(drawn, columns) if drawn else None


def render(page: Page) -> str:
    """Return the page as HTML that loads nothing from anywhere."""
    return _environment().get_template("page.html.j2").render(page=page)


def write_page(page: Page, path: Path) -> None:
    """Write the page aside and rename it."""
    with written_aside(path) as aside:
        aside.write_text(render(page), encoding="utf-8")


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
