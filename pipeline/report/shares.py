"""A figure of families: a measure in two domains against the share of parameters that moved.

Each family stands at its share, on a logarithmic axis, with a dot and an interval for each domain
and its name above. Places are percentages, so the figure fits a phone and a desk.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from pipeline.evaluation.samples.tables import Cell
from pipeline.report.words import capital

Place = Callable[[float], float]  # from a share or a value to percent of the panel
_NAME_HEIGHT = 6.0  # percent of the panel
_NAME_WIDTH = 14.0


@dataclass(frozen=True, slots=True)
class Spot:
    """One family: its share of parameters (0 to 1) and its cells in and out of the domain."""

    name: str
    share: float
    inside: Cell
    outside: Cell


def share_panel(spots: Sequence[Spot], *, title: str, about: str) -> str:
    """One panel; families without a share (nothing moved) are left to the table."""
    kept = sorted((spot for spot in spots if spot.share > 0), key=lambda spot: spot.share)
    if not kept:
        return ""
    logs = [math.log10(spot.share) for spot in kept]
    left, right = math.floor(min(logs)), max(0, math.ceil(max(logs)))
    ends = [end for spot in kept for cell in (spot.inside, spot.outside) for end in cell.ci95]
    room = 0.2 * (max(ends) - min(ends))  # for the names above the intervals
    ticks = _ticks(min(ends), max(ends) + room)
    low, high = ticks[0], ticks[-1]

    def across(share: float) -> float:
        return 4 + 92 * (math.log10(share) - left) / max(1, right - left)

    def down(value: float) -> float:
        return 100 - 100 * (value - low) / (high - low)

    strokes = "".join(_strokes(spot, across(spot.share), down) for spot in kept)
    grid = "".join(
        f'<span class="ygrid" style="top:{down(tick):.2f}%"><em>{tick:g}</em></span>'
        for tick in ticks
    )
    said = "; ".join(
        f"{spot.name} {spot.inside.value:.3g} in, {spot.outside.value:.3g} out of domain"
        for spot in kept
    )
    axis = "".join(
        f'<em style="left:{across(10.0**power):.1f}%">{_percent(power)}</em>'
        for power in range(left, right + 1)
    )
    return (
        f'<div class="panel" role="group" aria-label="{escape(f"{title}: {said}")}">'
        f'<p class="title">{escape(capital(title))} <small>{escape(about)}</small></p>'
        f'<div class="chart tall shares" aria-hidden="true">{grid}'
        f'<svg class="curves" viewBox="0 0 100 100" preserveAspectRatio="none">{strokes}</svg>'
        f"{_names(kept, across, down)}</div>"
        f'<p class="logaxis" aria-hidden="true">{axis}</p>'
        '<p class="xaxis" aria-hidden="true"><span></span>'
        "<span>share of the base's parameters that moved</span><span></span></p></div>"
    )


def _strokes(spot: Spot, x: float, down: Place) -> str:
    found = ""
    for cell, accent, shift in ((spot.inside, " accent", -0.6), (spot.outside, "", 0.6)):
        low, high = (down(end) for end in cell.ci95)
        at = x + shift
        found += f'<path class="spans{accent}" d="M{at:.2f} {low:.2f}V{high:.2f}"/>'
        found += f'<path class="spots{accent}" d="M{at:.2f} {down(cell.value):.2f}h0"/>'
    return found


def _names(spots: Sequence[Spot], across: Place, down: Place) -> str:
    """Above the upper interval of each family, moved up where two would overlap."""
    placed: list[tuple[float, float]] = []
    found = ""
    for spot in spots:
        x = across(spot.share)
        top = min(down(end) for cell in (spot.inside, spot.outside) for end in cell.ci95)
        y = top - _NAME_HEIGHT / 2 - 1
        while any(abs(x - a) < _NAME_WIDTH and abs(y - b) < _NAME_HEIGHT for a, b in placed):
            y -= _NAME_HEIGHT
        placed.append((x, y))
        found += f'<span class="name" style="left:{x:.1f}%;top:{y:.1f}%">{escape(spot.name)}</span>'
    return found


def _percent(power: int) -> str:
    return f"{100 * 10.0**power:g} %"


def _ticks(low: float, high: float) -> list[float]:
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough - 1e-12)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * place, 10) for place in range(first, last + 1)]
