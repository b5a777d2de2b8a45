"""The geometry of figures, in percent of a panel, so that each fits a phone and a desk.

templates/figures.html.j2 draws them as inline SVG: intervals (a row a model), bars (a group a
condition, as in figure 7 of the paper) and lines.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pipeline.evaluation.samples.tables import Cell
from pipeline.report.words import MINUS, THIN, Name, capital, interval, named, number

Point = tuple[float, float]
Axis = Callable[[float], float]  # from a value to percent of the panel


@dataclass(frozen=True, slots=True)
class Figure:
    """A panel that templates/figures.html.j2 draws by its `kind`.

    `description` has its numbers, for those who cannot see it.
    """

    kind: ClassVar[str]
    title: str
    description: str


BAR_GAP = 0.28  # of a group's width, left empty between two groups
FAINTEST_BAR = 0.35
LINE_NAME_WIDTH, LINE_NAME_HEIGHT = 25.0, 11.0  # in percent of a panel


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis from `low` to `high`, with ticks at round values."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def x(self, value: float) -> float:
        """Return the position of a value in percent of the width, clipped to the panel."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)


@dataclass(frozen=True, slots=True)
class IntervalPanel(Figure):
    """A row a cell: a dot at the estimate, a line over its 95 % interval."""

    kind: ClassVar[str] = "intervals"
    about: str
    cells: Sequence[Cell]
    scale: Scale
    ticks: Sequence[tuple[float, str, str]]  # position, label, style
    focus: str
    reference: float | None
    hollow: bool


@dataclass(frozen=True, slots=True)
class Bar:
    """A cell's bar, and the vertical line over its interval."""

    cell: Cell
    left: float
    width: float
    top: float
    middle: float
    low: float
    high: float
    shade: float


@dataclass(frozen=True, slots=True)
class BarPanel(Figure):
    """Groups of bars from zero. Models differ by order and shade; the focus has the accent."""

    kind: ClassVar[str] = "bars"
    about: str
    grid: Sequence[tuple[float, str]]
    bars: Sequence[Bar]
    legend: Sequence[tuple[str, float]]  # model and shade
    groups: Sequence[str]
    focus: str


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


@dataclass(frozen=True, slots=True)
class Strokes:
    """SVG paths in one colour: a line, upright intervals, dots."""

    accent: bool
    line: str = ""
    dashed: bool = False
    spans: str = ""
    spots: str = ""


@dataclass(frozen=True, slots=True)
class LinePanel(Figure):
    """Curves with the y scale at their left and their names beside their ends."""

    kind: ClassVar[str] = "lines"
    tall: bool
    grid: Sequence[tuple[float, str]]
    curves: Sequence[Strokes]
    names: Sequence[tuple[str, bool, float, float]]  # name, accent, left, top
    reference: float | None
    x_axis: tuple[str, str, str]  # left end, title, right end


def scale_of(cells: Sequence[Cell], reference: float | None = None) -> Scale:
    """Return a scale that holds all intervals and the reference, from 0 where that is near."""
    ends = [end for cell in cells for end in (*cell.ci95, cell.value) if math.isfinite(end)]
    if reference is not None:
        ends.append(reference)
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    if 0 <= low < 0.6 * (high - low) or 0 <= low < 0.35 * high:
        low = 0.0
    if high == low:
        high = low + (abs(low) or 1.0)
    ticks = round_ticks(low, high, 4)
    return Scale(ticks[0], ticks[-1], tuple(ticks))


def interval_panel(
    cells: Sequence[Cell],
    *,
    title: str,
    about: str = "",
    focus: str,
    scale: Scale | None = None,
    reference: float | None = None,
    hollow: bool = False,
) -> IntervalPanel | None:
    """Return a panel of the cells. `hollow` marks what is not independent evidence."""
    if not cells:
        return None
    scale = scale or scale_of(cells, reference)
    name = named(cells[0].quantity.metric)
    coarse = Name(name.title, name.share, _digits(scale, name))
    numbers = "; ".join(
        f"{c.model} {number(c.value, name)} ({interval(*c.ci95, name)})" for c in cells
    )
    counts = sorted({cell.n for cell in cells})
    span = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    failed = sum(cell.n_failed for cell in cells)
    note = f"n = {span} {cells[0].quantity.unit}s" + (f", {failed} failed" if failed else "")
    return IntervalPanel(
        title=capital(title),
        about=f"{about}, {note}" if about else note,
        description=f"{title}: {numbers}",
        cells=cells,
        scale=scale,
        ticks=[
            (scale.x(tick), number(tick, coarse), _tick_style(index, len(scale.ticks)))
            for index, tick in enumerate(scale.ticks)
        ],
        focus=focus,
        reference=None if reference is None else scale.x(reference),
        hollow=hollow,
    )


def _tick_style(index: int, ticks: int) -> str:
    """The outer labels stand inside the plot; every second one gives way where space is short."""
    edge = "first" if index == 0 else "last" if index == ticks - 1 else ""
    return edge or ("spare" if ticks > 3 and (index % 2 or index == ticks - 2) else "")


def _digits(scale: Scale, name: Name) -> int:
    step = (scale.ticks[1] - scale.ticks[0]) * (100 if name.share else 1)
    return next(digits for digits in range(12) if abs(step - round(step, digits)) < 1e-9 * step)


def grouped_bars(
    groups: Mapping[str, Sequence[Cell]], *, title: str, about: str = "", focus: str
) -> BarPanel | None:
    """Return bars from zero; None for one group, one model or values below zero."""
    cells = [cell for group in groups.values() for cell in group if math.isfinite(cell.value)]
    models = list(dict.fromkeys(cell.model for cell in cells))
    if len(groups) < 2 or len(models) < 2:
        return None
    name, scale = named(cells[0].quantity.metric), scale_of(cells, reference=0.0)
    if scale.low < 0:
        return None
    coarse = Name(name.title, name.share, 0 if name.share else 2)
    numbers = "; ".join(
        f"{c.model}, {c.quantity.filter}: {number(c.value, name)} ({interval(*c.ci95, name)})"
        for c in cells
    )
    return BarPanel(
        title=capital(title),
        about=about,
        description=f"{title}: {numbers}",
        grid=[(100 - scale.x(tick), number(tick, coarse)) for tick in scale.ticks],
        bars=[
            _bar(cell, models, index, len(groups), scale)
            for index, group in enumerate(groups.values())
            for cell in group
            if math.isfinite(cell.value)
        ],
        legend=[(model, _shade(index, len(models))) for index, model in enumerate(models)],
        groups=list(groups),
        focus=focus,
    )


def _bar(cell: Cell, models: Sequence[str], group: int, groups: int, scale: Scale) -> Bar:
    index, share = models.index(cell.model), (1 - BAR_GAP) / len(models)
    left, width = 100 * (group + BAR_GAP / 2 + index * share) / groups, 100 * share / groups
    top, low, high = (100 - scale.x(value) for value in (cell.value, *cell.ci95))
    middle = left + width / 2 - width * 0.07
    return Bar(cell, left, width * 0.86, top, middle, low, high, _shade(index, len(models)))


def _shade(index: int, models: int) -> float:
    return round(FAINTEST_BAR + (1 - FAINTEST_BAR) * index / max(1, models - 1), 2)


def line_panel(
    curves: Sequence[Curve],
    *,
    title: str,
    x_title: str,
    from_zero: bool = False,
    reference: float | None = None,
    tall: bool = False,
) -> LinePanel | None:
    """Return a panel of the curves that have two points or more; None where none has."""
    drawn = [curve for curve in map(_finite, curves) if len(curve.points) > 1]
    if not drawn:
        return None
    xs = [x for curve in drawn for x, _ in curve.points]
    ys = [y for curve in drawn for _, y in curve.points]
    ys += [end for curve in drawn for span in curve.spans for end in span]
    ys += [reference] if reference is not None else []
    left, right = min(xs), max(max(xs), min(xs) + 1e-9)
    low, high = 0.0 if from_zero and min(ys) >= 0 else min(ys), max(ys)
    if high - low < 1e-12:
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    ticks = round_ticks(low, high, 3)

    def across(x: float) -> float:
        return 100 * (x - left) / (right - left)

    def down(y: float) -> float:
        return 100 - 100 * (y - ticks[0]) / (ticks[-1] - ticks[0])

    ends = "; ".join(f"{curve.name} ends at {_short(curve.points[-1][1])}" for curve in drawn)
    return LinePanel(
        title=capital(title),
        description=f"{title}: {ends}",
        tall=tall,
        grid=[(down(tick), _short(tick)) for tick in ticks],
        curves=[_curve_strokes(curve, across, down) for curve in drawn],
        names=_end_names(drawn, across, down),
        reference=None if reference is None else down(reference),
        x_axis=(_short(left), x_title, _short(right)),
    )


def thinned(points: Sequence[Point], most: int = 240) -> list[Point]:
    """Return at most so many points: every n-th, the first and the last among them."""
    step = max(1, math.ceil(len(points) / most))
    thin = list(points[::step])
    return thin if not points or thin[-1] == points[-1] else [*thin, points[-1]]


def _finite(curve: Curve) -> Curve:
    indices = [i for i, point in enumerate(curve.points) if all(map(math.isfinite, point))]
    spans = thinned([curve.spans[i] for i in indices]) if curve.spans else ()
    points = thinned([curve.points[i] for i in indices])
    return Curve(curve.name, points, curve.accent, curve.dashed, curve.dots, spans)


def _curve_strokes(curve: Curve, across: Axis, down: Axis) -> Strokes:
    points = [(across(x), down(y)) for x, y in curve.points]
    line = "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)
    ends = zip(points, curve.spans, strict=True) if curve.spans else ()
    spans = "".join(f"M{x:.2f} {down(low):.2f}V{down(high):.2f}" for (x, _), (low, high) in ends)
    # Zero-length strokes with round caps stay round when the box is stretched.
    spots = "".join(f"M{x:.2f} {y:.2f}h0" for x, y in points) if curve.dots else ""
    return Strokes(curve.accent, line, curve.dashed, spans, spots)


def _end_names(
    curves: Sequence[Curve], across: Axis, down: Axis
) -> list[tuple[str, bool, float, float]]:
    """Return the names at the curves' ends, moved apart where they would overlap."""
    if len(curves) == 1:
        return []
    ends = [(across(curve.points[-1][0]), down(curve.points[-1][1])) for curve in curves]
    tops: dict[int, float] = {}
    for index in sorted(range(len(ends)), key=lambda i: ends[i][1]):
        x, y = ends[index]
        near = [tops[other] for other in tops if abs(ends[other][0] - x) < LINE_NAME_WIDTH]
        tops[index] = max([y, *(top + LINE_NAME_HEIGHT for top in near)])
    return [
        (curve.name, curve.accent, ends[index][0], tops[index])
        for index, curve in enumerate(curves)
    ]


def round_ticks(low: float, high: float, intervals: int) -> list[float]:
    """Return about so many steps of 1, 2, 2.5 or 5 times a power of ten around low and high."""
    rough = (high - low) / intervals
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough - 1e-12)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * index, 10) for index in range(first, last + 1)]


def _short(value: float) -> str:
    text = f"{value:.3g}"
    if "e" in text:
        text = f"{value:,.0f}".replace(",", THIN) if abs(value) >= 1 else f"{value:.0e}"
    return text.replace("-", MINUS)
