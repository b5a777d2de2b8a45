"""Line plots: curves with their names at their ends. Strokes keep their width at any size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from pipeline.report.words import MINUS, THIN, capital

Point = tuple[float, float]
_NAME_WIDTH, _NAME_HEIGHT = 25.0, 11.0  # what a name takes, in percent of a panel


@dataclass(frozen=True, slots=True)
class Curve:
    """One line through points in order; `accent` draws it in the page's one colour.

    `spans` are the lower and upper ends of intervals, one a point, or none.
    """

    name: str
    points: Sequence[Point]
    accent: bool = False
    dashed: bool = False
    dots: bool = False
    spans: Sequence[Point] = ()


def line_panel(
    curves: Sequence[Curve],
    *,
    title: str,
    x_title: str,
    from_zero: bool = False,
    reference: float | None = None,
    tall: bool = False,
) -> str:
    """One panel with the y scale at its left and the names of several curves beside their ends."""
    kept = [_finite(curve) for curve in curves]
    kept = [curve for curve in kept if len(curve.points) > 1]
    if not kept:
        return ""
    xs = [x for curve in kept for x, _ in curve.points]
    ys = [y for curve in kept for _, y in curve.points]
    ys += [end for curve in kept for span in curve.spans for end in span]
    ys += [reference] if reference is not None else []
    left, right = min(xs), max(max(xs), min(xs) + 1e-9)
    ticks = _ticks(0.0 if from_zero and min(ys) >= 0 else min(ys), max(ys))
    frame = (left, right, ticks[0], ticks[-1])
    last = "; ".join(f"{curve.name} ends at {_short(curve.points[-1][1])}" for curve in kept)
    return (
        f'<div class="panel" role="group" aria-label="{escape(f"{title}: {last}")}">'
        f'<p class="title">{escape(capital(title))}</p>'
        f'<div class="chart{" tall" if tall else ""}" aria-hidden="true">'
        f"{_grid(ticks, frame)}"
        '<svg class="curves" viewBox="0 0 100 100" preserveAspectRatio="none">'
        f"{_reference(reference, frame)}{''.join(_path(curve, frame) for curve in kept)}</svg>"
        f"{_ends(kept, frame)}</div>"
        f'<p class="xaxis" aria-hidden="true"><span>{_short(left)}</span>'
        f"<span>{escape(x_title)}</span><span>{_short(right)}</span></p></div>"
    )


def thinned(points: Sequence[Point], most: int = 240) -> list[Point]:
    """At most so many points: every n-th, the first and the last among them."""
    step = max(1, math.ceil(len(points) / most))
    kept = list(points[::step])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def _finite(curve: Curve) -> Curve:
    kept = [i for i, point in enumerate(curve.points) if all(map(math.isfinite, point))]
    spans = thinned([curve.spans[i] for i in kept]) if curve.spans else ()
    points = thinned([curve.points[i] for i in kept])
    return Curve(curve.name, points, curve.accent, curve.dashed, curve.dots, spans)


def _place(point: Point, frame: tuple[float, float, float, float]) -> Point:
    left, right, low, high = frame
    return 100 * (point[0] - left) / (right - left), 100 - 100 * (point[1] - low) / (high - low)


def _path(curve: Curve, frame: tuple[float, float, float, float]) -> str:
    places = [_place(point, frame) for point in curve.points]
    drawn = "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in places)
    kind = " ".join(
        ["line", *(["accent"] if curve.accent else []), *(["dashed"] if curve.dashed else [])]
    )
    dots = ""
    if curve.dots:  # zero-length strokes with round caps stay round when the box is stretched
        spots = "".join(f"M{x:.2f} {y:.2f}h0" for x, y in places)
        dots = f'<path class="spots{" accent" if curve.accent else ""}" d="{spots}"/>'
    return f'<path class="{kind}" d="{drawn}"/>{_whiskers(curve, frame)}{dots}'


def _whiskers(curve: Curve, frame: tuple[float, float, float, float]) -> str:
    """The intervals as upright strokes."""
    if not curve.spans:
        return ""
    drawn = ""
    for (at, _), (low, high) in zip(curve.points, curve.spans, strict=True):
        (x, bottom), (_, top) = _place((at, low), frame), _place((at, high), frame)
        drawn += f"M{x:.2f} {bottom:.2f}V{top:.2f}"
    return f'<path class="spans{" accent" if curve.accent else ""}" d="{drawn}"/>'


def _reference(value: float | None, frame: tuple[float, float, float, float]) -> str:
    if value is None:
        return ""
    y = _place((frame[0], value), frame)[1]
    return f'<path class="reference" d="M0 {y:.2f}H100"/>'


def _grid(ticks: Sequence[float], frame: tuple[float, float, float, float]) -> str:
    return "".join(
        f'<span class="ygrid" style="top:{_place((frame[0], tick), frame)[1]:.2f}%">'
        f"<em>{_short(tick)}</em></span>"
        for tick in ticks
    )


def _ends(curves: Sequence[Curve], frame: tuple[float, float, float, float]) -> str:
    """Names at the curves' ends, moved apart where they would overlap."""
    if len(curves) == 1:
        return ""
    ends = [_place(curve.points[-1], frame) for curve in curves]
    tops: dict[int, float] = {}
    for index in sorted(range(len(ends)), key=lambda i: ends[i][1]):
        x, y = ends[index]
        near = [tops[other] for other in tops if abs(ends[other][0] - x) < _NAME_WIDTH]
        tops[index] = max([y, *(top + _NAME_HEIGHT for top in near)])
    return "".join(
        f'<span class="end{" accent" if curve.accent else ""}" '
        f'style="left:{ends[index][0]:.1f}%;top:{tops[index]:.1f}%">{escape(curve.name)}</span>'
        for index, curve in enumerate(curves)
    )


def _ticks(low: float, high: float) -> list[float]:
    if high - low < 1e-12:
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    rough = (high - low) / 3
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough - 1e-12)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * place, 10) for place in range(first, last + 1)]


def _short(value: float) -> str:
    text = f"{value:.3g}"
    if "e" in text:
        text = f"{value:,.0f}".replace(",", THIN) if abs(value) >= 1 else f"{value:.0e}"
    return text.replace("-", MINUS)
