"""The templates' environment: pages are rendered from records, and every text is escaped."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.report import words
from pipeline.report.figures import Figure
from pipeline.report.terminal import verdict_text
from reward_models.atomic_files import written_aside

FILTERS = (
    words.capital,
    words.cell_text,
    words.difference_text,
    words.filter_title,
    words.interval,
    words.named,
    words.number,
    words.p_text,
    words.suite_title,
    verdict_text,
)


@dataclass(frozen=True, slots=True)
class Group:
    """Figures side by side, one to three in a row where there is room, below a heading."""

    figures: Sequence[Figure]
    columns: str = "two"
    heading: str = ""
    small: str = ""


def group(
    *figures: Figure | None, columns: str = "two", heading: str = "", small: str = ""
) -> Group:
    """Return a group of the figures that are there."""
    return Group([figure for figure in figures if figure is not None], columns, heading, small)


def render(template: str, **context: object) -> str:
    """Return a page as HTML that loads nothing from anywhere."""
    return _environment().get_template(template).render(context)


def write_page(path: Path, template: str, **context: object) -> None:
    """Write a page aside and rename it."""
    with written_aside(path) as aside:
        aside.write_text(render(template, **context), encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {function.__name__: function for function in FILTERS}
    environment.globals |= {"MINUS": words.MINUS, "MISSING": words.MISSING}
    return environment
