"""Interval plots: one row a model, a dot at the estimate, a line over its 95 % interval.

Each row is a small inline SVG whose x coordinates are percentages, so that a figure fits a phone
and a desk without shrinking its text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from pipeline.evaluation.samples.tables import Cell
from pipeline.report.words import Name, capital, interval, named, number


@dataclass(frozen=True, slots=True)
class Scale:
    """The x axis: from `low` to `high`, with ticks at round values."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def x(self, value: float) -> float:
        """The place of a value in percent of the width, kept inside it."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)


def scale_of(cells: Sequence[Cell], reference: float | None = None) -> Scale:
    """A scale that holds all intervals and the reference; shares start at 0 where that is near."""
    ends = [end for cell in cells for end in (*cell.ci95, cell.value) if math.isfinite(end)]
    if reference is not None:
        ends.append(reference)
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    if 0 <= low < 0.6 * (high - low) or 0 <= low < 0.35 * high:
        low = 0.0
    if high == low:
        high = low + (abs(low) or 1.0)
    step = _round_step((high - low) / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(step * place, 10) for place in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], ticks)


def interval_panel(
    cells: Sequence[Cell],
    *,
    title: str,
    about: str = "",
    focus: str,
    scale: Scale | None = None,
    reference: float | None = None,
    hollow: bool = False,
) -> str:
    """One panel: rows for cells, an axis below. `hollow` marks what is not independent evidence."""
    if not cells:
        return ""
    scale = scale or scale_of(cells, reference)
    name = named(cells[0].quantity.metric)
    rows = "".join(_row(cell, name, scale, focus, reference, hollow) for cell in cells)
    said = "; ".join(
        f"{c.model} {number(c.value, name)} ({interval(*c.ci95, name)})" for c in cells
    )
    counts = sorted({cell.n for cell in cells})
    unit = cells[0].quantity.unit
    failed = sum(cell.n_failed for cell in cells)
    note = f"n = {_span(counts)} {unit}s" + (f", {failed} failed" if failed else "")
    about = f"{about}, {note}" if about else note
    return (
        f'<div class="panel" role="group" aria-label="{escape(f"{title}: {said}")}">'
        f'<p class="title">{escape(capital(title))} <small>{escape(about)}</small></p>'
        f'<div class="forest">{rows}{_axis(scale, name)}</div></div>'
    )


def _row(
    cell: Cell, name: Name, scale: Scale, focus: str, reference: float | None, hollow: bool
) -> str:
    low, high = (scale.x(end) for end in cell.ci95)
    lines = "".join(
        f'<line class="grid" x1="{scale.x(tick)}%" x2="{scale.x(tick)}%" y1="0" y2="100%"/>'
        for tick in scale.ticks
    )
    if reference is not None:
        at = scale.x(reference)
        lines += f'<line class="reference" x1="{at}%" x2="{at}%" y1="0" y2="100%"/>'
    mark = ""
    if math.isfinite(cell.value):
        shape = "dot hollow" if hollow else "dot"
        mark = (
            f'<line class="whisker" x1="{low}%" x2="{high}%" y1="50%" y2="50%"/>'
            f'<circle class="{shape}" cx="{scale.x(cell.value)}%" cy="50%" r="4.5"/>'
        )
    chosen = " focus" if cell.model == focus else ""
    value = f"<b>{number(cell.value, name)}</b> <i>{interval(*cell.ci95, name)}</i>"
    return (
        f'<div class="row{chosen}"><span class="who">{escape(cell.model)}</span>'
        f'<svg class="plot" aria-hidden="true">{lines}{mark}</svg>'
        f'<span class="value">{value}</span></div>'
    )


def _axis(scale: Scale, name: Name) -> str:
    coarse = Name(name.title, name.share, _digits(scale, name))
    labels = "".join(
        f'<text x="{scale.x(tick)}%" y="12" class="tick {_anchor(place, len(scale.ticks))}">'
        f"{number(tick, coarse)}</text>"
        for place, tick in enumerate(scale.ticks)
    )
    return (
        f'<div class="row axis" aria-hidden="true"><span></span><svg class="plot">{labels}</svg>'
        "<span></span></div>"
    )


def _anchor(place: int, ticks: int) -> str:
    """The outer labels stand inside the plot; every second one gives way where space is short."""
    edge = "first" if place == 0 else "last" if place == ticks - 1 else ""
    return edge or ("spare" if ticks > 3 and (place % 2 or place == ticks - 2) else "")


def _digits(scale: Scale, name: Name) -> int:
    step = (scale.ticks[1] - scale.ticks[0]) * (100 if name.share else 1)
    return next(digits for digits in range(12) if abs(step - round(step, digits)) < 1e-9 * step)


def _round_step(rough: float) -> float:
    """The next of 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough - 1e-12)


def _span(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
