"""Grouped bars with intervals: a group a condition, a bar a model, as in figure 7 of the paper.

Places are percentages, so the figure fits a phone and a desk. Models are told apart by their order,
by shade, and by a legend; the one the experiment is about has the page's one colour.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

from pipeline.evaluation.samples.tables import Cell
from pipeline.report.forest import Scale, scale_of
from pipeline.report.words import Name, capital, interval, named, number

_GAP = 0.28  # of a group's width, left empty between two groups
_FAINTEST = 0.35


def grouped_bars(
    groups: Mapping[str, Sequence[Cell]], *, title: str, about: str = "", focus: str
) -> str:
    """One panel: groups side by side, bars from zero, a line over each bar's 95 % interval."""
    every = [cell for cells in groups.values() for cell in cells if math.isfinite(cell.value)]
    models = list(dict.fromkeys(cell.model for cell in every))
    if len(groups) < 2 or len(models) < 2:
        return ""
    name, scale = named(every[0].quantity.metric), scale_of(every, reference=0.0)
    if scale.low < 0:
        return ""  # bars need a zero to stand on
    bars = "".join(
        _bar(cell, models, place, len(groups), scale, name, focus)
        for place, cells in enumerate(groups.values())
        for cell in cells
        if math.isfinite(cell.value)
    )
    labels = "".join(f"<span>{escape(group)}</span>" for group in groups)
    said = "; ".join(
        f"{c.model}, {c.quantity.filter}: {number(c.value, name)} ({interval(*c.ci95, name)})"
        for c in every
    )
    small = f" <small>{escape(about)}</small>" if about else ""
    return (
        f'<div class="panel bars" role="group" aria-label="{escape(f"{title}: {said}")}">'
        f'<p class="title">{escape(capital(title))}{small}</p>{_legend(models, focus)}'
        f'<div class="chart tall shares" aria-hidden="true">{_grid(scale, name)}'
        f'<svg class="curves">{bars}</svg></div>'
        f'<p class="groups" aria-hidden="true">{labels}</p></div>'
    )


def shade(place: int, models: int) -> float:
    """How dark the bar of a model is, from faint to full in their order."""
    return round(_FAINTEST + (1 - _FAINTEST) * place / max(1, models - 1), 2)


def _bar(
    cell: Cell,
    models: Sequence[str],
    group: int,
    groups: int,
    scale: Scale,
    name: Name,
    focus: str,
) -> str:
    width = (1 - _GAP) / len(models)
    place = models.index(cell.model)
    left = 100 * (group + _GAP / 2 + place * width) / groups
    wide = 100 * width / groups
    top = 100 - scale.x(cell.value)
    low, high = (100 - scale.x(end) for end in cell.ci95)
    middle = left + wide / 2
    chosen = " focus" if cell.model == focus else ""
    tip = f"{cell.model}: {number(cell.value, name)} ({interval(*cell.ci95, name)})"
    return (
        f'<g class="bar{chosen}"><title>{escape(tip)}</title>'
        f'<rect x="{left:.2f}%" y="{top:.2f}%" width="{wide * 0.86:.2f}%" '
        f'height="{100 - top:.2f}%" fill-opacity="{shade(place, len(models))}"/>'
        f'<line x1="{middle - wide * 0.07:.2f}%" x2="{middle - wide * 0.07:.2f}%" '
        f'y1="{low:.2f}%" y2="{high:.2f}%"/></g>'
    )


def _legend(models: Sequence[str], focus: str) -> str:
    marks = "".join(
        f'<span class="{"focus" if model == focus else ""}">'
        f'<i style="opacity:{shade(place, len(models))}"></i>{escape(model)}</span>'
        for place, model in enumerate(models)
    )
    return f'<p class="legend" aria-hidden="true">{marks}</p>'


def _grid(scale: Scale, name: Name) -> str:
    return "".join(
        f'<span class="ygrid" style="top:{100 - scale.x(tick):.2f}%">'
        f"<em>{number(tick, _coarse(name))}</em></span>"
        for tick in scale.ticks
    )


def _coarse(name: Name) -> Name:
    return Name(name.title, name.share, 0 if name.share else 2)
