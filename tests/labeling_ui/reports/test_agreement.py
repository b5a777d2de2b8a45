"""Agreement is what scipy, krippendorff and a slow count say it is."""

import time
from itertools import combinations

import krippendorff
import numpy as np
import pytest
from scipy.stats import kendalltau

from labeling_ui.reports.agreement import (
    agreement,
    alpha,
    flag_units,
    overlaps,
    rating_units,
)
from labeling_ui.reports.quality import report
from reward_models.records import Ranking
from tests.labeling_ui.examples import ranks_of, small_task

RNG = np.random.default_rng(0)


def ranking(task: str, annotator: str, ranks: list[int], **more: object) -> Ranking:
    named = dict(zip("abcdefghi", ranks, strict=False))
    return Ranking(task, annotator, "simulated", named, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_responses", [2, 4, 9])
def test_tau_b_is_scipys(num_responses: int) -> None:
    for _ in range(200):
        one, other = RNG.integers(1, num_responses + 1, (2, num_responses)).tolist()
        ours, theirs = (
            overlaps([ranking("t", "x", one), ranking("t", "y", other)])[0].tau_b,
            kendalltau(one, other, variant="b").statistic,
        )
        assert ours == pytest.approx(theirs, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_alpha_is_krippendorffs_with_ties_and_gaps(level: str) -> None:
    for _ in range(50):
        table = RNG.integers(1, 8, (5, 30)).astype(float)
        table[RNG.random(table.shape) < 0.3] = np.nan
        units = [
            {str(a): table[a, u] for a in range(5) if not np.isnan(table[a, u])} for u in range(30)
        ]
        theirs = krippendorff.alpha(table, level_of_measurement=level)
        assert alpha(units, level) == pytest.approx(theirs, abs=1e-9)  # type: ignore[arg-type]


def test_alpha_is_undefined_where_all_say_the_same_or_nobody_overlaps() -> None:
    assert alpha([{"a": 1.0, "b": 1.0}], "nominal") is None
    assert alpha([{"a": 1.0}, {"b": 2.0}], "nominal") is None


def test_agreement_is_what_a_slow_count_says() -> None:
    rankings = [
        ranking(f"t{t}", name, RNG.integers(1, 5, 5).tolist()) for t in range(30) for name in "xyz"
    ]
    same = strict = one_tied = both_tied = 0
    for one, other in combinations(rankings, 2):
        if one.task != other.task:
            continue
        for a, b in combinations("abcde", 2):
            s = one.ranks[a] - one.ranks[b]
            o = other.ranks[a] - other.ranks[b]
            strict += bool(s and o)
            same += s * o > 0
            one_tied += bool(s) != bool(o)
            both_tied += not s and not o
    compared = overlaps(rankings)
    rate = agreement(compared, RNG)
    assert rate.value == same / strict
    assert (rate.num_pairs, rate.num_prompts) == (strict, 30)
    assert (sum(o.one_tied for o in compared), sum(o.both_tied for o in compared)) == (
        one_tied,
        both_tied,
    )
    assert rate.low is not None
    assert rate.high is not None
    assert rate.low < rate.value < rate.high


def test_skips_do_not_count() -> None:
    both = [ranking("t", "x", [1, 2]), Ranking("t", "y", "human", {}, skipped="why")]
    assert overlaps(both) == []


def test_units_of_flags_leave_the_unanswered_out() -> None:
    rankings = [
        ranking("t", "x", [1, 2], flags={"a": ["toxic"]}),
        ranking("t", "y", [1, 2], extra={"flags_no": {"a": ["toxic"], "b": ["toxic"]}}),
    ]
    assert flag_units(rankings, "toxic") == [{"x": 1, "y": 0}, {"y": 0}]
    rated = [ranking("t", "x", [1, 2], ratings={"a": 7}), ranking("t", "y", [1, 2])]
    assert rating_units(rated) == [{"x": 7}]


def noisy(name: str, accuracy: float, num_tasks: int, rng: np.random.Generator) -> list[Ranking]:
    """An annotator who orders each pair of two rightly with this probability (a is better)."""
    right = rng.random(num_tasks) < accuracy
    orders = [["a", "b"] if flip else ["b", "a"] for flip in rng.random(num_tasks) < 0.5]
    return [
        ranking(f"t{i}", name, [1, 2] if right[i] else [2, 1], shown_order=orders[i])
        for i in range(num_tasks)
    ]


def test_gold_tells_annotators_of_60_75_and_90_percent_apart_after_200_judgements() -> None:
    rng = np.random.default_rng(1)
    tasks = [small_task(f"t{i}", 2) for i in range(200)]
    rankings = [
        r
        for name, p in (("x60", 0.6), ("y75", 0.75), ("z90", 0.9))
        for r in noisy(name, p, 200, rng)
    ]
    gold = {task.id: {"a": 1, "b": 2} for task in tasks}
    rows = {row["name"]: row for row in report(tasks, rankings, gold=gold, rng=rng)["annotators"]}
    for low, high in (("x60", "y75"), ("y75", "z90")):
        assert rows[low]["gold"]["high"] < rows[high]["gold"]["value"]
        assert rows[low]["gold"]["value"] < rows[high]["gold"]["low"]
    assert any("gold" in warning for warning in rows["x60"]["warnings"])
    assert rows["z90"]["warnings"] == []


def test_who_follows_the_order_shown_is_noticed() -> None:
    rng = np.random.default_rng(2)
    tasks = [small_task(f"t{i}", 4) for i in range(30)]
    lazy = []
    for task in tasks:
        order = list(rng.permutation(list("abcd")))
        lazy.append(Ranking(task.id, "lazy", "human", ranks_of(order), shown_order=order))
    (row,) = report(tasks, lazy, gold={}, rng=rng)["annotators"]
    assert row["first_wins"]["value"] == 1
    assert any("order shown" in warning for warning in row["warnings"])


@pytest.mark.bench
def test_a_report_on_ten_thousand_tasks_takes_two_seconds() -> None:
    rng = np.random.default_rng(3)
    tasks = [small_task(f"t{i}", 4) for i in range(10_000)]
    ranks = rng.integers(1, 5, (10_000, 3, 4)).tolist()
    ratings = [{"a": 3, "b": 5}, {"a": 4, "b": 5}]
    rankings = [
        ranking(f"t{i}", f"p{j}", ranks[i][j], ratings=ratings[i % 2], shown_order=list("abcd"))
        for i in range(10_000)
        for j in range(3)
    ]
    began_s = time.process_time()
    made = report(tasks, rankings, gold={}, rng=rng)
    assert made["num_rankings"] == 30_000
    assert time.process_time() - began_s < 2
