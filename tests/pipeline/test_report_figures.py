"""Numbers as the page prints them, and its figures: intervals, bars and curves."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.evaluation.samples.tables import Cell, Quantity
from pipeline.report.figures import (
    Curve,
    grouped_bars,
    interval_panel,
    line_panel,
    scale_of,
    thinned,
)
from pipeline.report.words import named, number, p_text
from tests.pipeline.made_up_run import there


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [
        (0.1234, "hallucination", "12.3\u202f%"),
        (-0.5, "gold", "\u22120.50"),
        (-0.0001, "gold", "0.00"),
        (float("nan"), "gold", "n/a"),
    ],
)
def test_numbers_are_printed_plainly(value: float, metric: str, text: str):
    assert number(value, named(metric)) == text


def test_p_values_are_printed_as_papers_do():
    assert [p_text(p) for p in (0.0004, 0.034, 1.0)] == ["< .001", ".034", "1"]


def cell(value: float, low: float, high: float) -> Cell:
    quantity = Quantity("toxicity", "toxicity", "none", "s")
    return Cell(quantity, "m", value, 0.1, (low, high), 10, 10, 0, "bootstrap")


@pytest.mark.parametrize("values", [(0.2, 0.1, 0.3), (-3.0, -4.0, 9.0), (1e-6, 0, 2e-6), (5, 5, 5)])
def test_a_scale_holds_its_intervals_between_round_ticks(values: tuple[float, float, float]):
    scale = scale_of([cell(*values)])
    assert scale.low <= values[1]
    assert values[2] <= scale.high
    assert 2 <= len(scale.ticks) <= 7
    steps = np.diff(scale.ticks)
    assert steps == pytest.approx(np.full(len(steps), steps[0]))


def test_a_panel_says_its_numbers_to_those_who_cannot_see_it():
    panel = there(interval_panel([cell(0.25, 0.2, 0.3)], title="Toxicity", focus="m"))
    assert panel.description == "Toxicity: m 0.250 (0.200\u20130.300)"


def test_failures_are_shown_in_the_panel():
    panel = there(interval_panel([replace(cell(0.25, 0.2, 0.3), n_failed=3)], title="T", focus="m"))
    assert "3 failed" in panel.about


def test_a_curve_without_numbers_draws_nothing():
    assert line_panel([Curve("a", [(1.0, float("nan"))])], title="t", x_title="x") is None
    assert line_panel([], title="t", x_title="x") is None


def test_a_constant_curve_has_a_scale():
    panel = there(line_panel([Curve("a", [(1, 2.0), (2, 2.0)])], title="t", x_title="x"))
    assert panel.curves[0].line.startswith("M0.00 50.00L100.00 50.00")
    assert len(panel.grid) >= 2


def test_bars_stand_on_zero_and_reach_their_values():
    groups = {}
    for kind, value in (("none", 0.2), ("biased", 0.4)):
        quantity, ends = Quantity("toxicity", "toxicity", kind), (value / 2, value)
        groups[kind] = [
            Cell(quantity, model, value, 0, ends, 9, 9, 0, "bootstrap") for model in ("a", "b")
        ]
    panel = there(grouped_bars(groups, title="toxicity", focus="b"))
    assert [bar.top for bar in panel.bars] == pytest.approx([50.0, 50.0, 0.0, 0.0])
    assert [bar.cell.model for bar in panel.bars] == ["a", "b", "a", "b"]
    assert "b, biased: 0.400 (0.200" in panel.description


def test_bars_are_not_drawn_below_zero_or_for_one_condition():
    cells = [Cell(Quantity("s", "gold"), m, -1.0, 0, (-2, 0), 9, 9, 0, "bootstrap") for m in "ab"]
    assert grouped_bars({"x": cells, "y": cells}, title="t", focus="") is None
    assert grouped_bars({"x": cells}, title="t", focus="") is None


def test_thinning_keeps_both_ends():
    points = [(float(i), float(i)) for i in range(1001)]
    thin = thinned(points, 100)
    assert (thin[0], thin[-1]) == (points[0], points[-1])
    assert len(thin) <= 102
