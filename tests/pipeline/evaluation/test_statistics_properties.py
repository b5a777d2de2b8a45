"""Properties of every statistic when its input is shuffled, duplicated or relabelled.

Shuffling prompts changes nothing. Duplicating every prompt leaves an estimate and never makes it
look less certain. Swapping two models turns a difference round and leaves its p value.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from labeling_ui.reports.agreement import alpha, overlaps
from pipeline.evaluation import statistics as s
from pipeline.evaluation.scorers.style import answer_scores, word_f1
from reward_models.intervals import Floats
from reward_models.records import Ranking

SHARES = arrays.arrays(float, st.integers(2, 12), elements=st.floats(0, 1, width=32))
PAIRS = arrays.arrays(
    float, st.tuples(st.integers(2, 9), st.just(2)), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0])
)
RATES = st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def sign_p(difference_N: Floats) -> float:
    return s.sign_flip_p(difference_N[:, None], 200, np.random.default_rng(0))[0]


@settings(max_examples=40, deadline=None)
@given(SHARES, st.randoms(use_true_random=False))
def test_the_order_of_samples_or_prompts_is_nothing(score_N: Floats, random: object) -> None:
    shuffled_N = np.array(random.sample(list(score_N), len(score_N)))  # type: ignore[attr-defined]
    half = max(1, len(score_N) // 2)
    measures: list[Callable[[Floats], float]] = [
        lambda v: s.expected_maximum(v, half),
        lambda v: s.minimum_detectable_effect(v),
        lambda v: sign_p(v - 0.5),
        lambda v: s.win_share(v, score_N),
    ]
    for measure in measures:
        assert measure(shuffled_N) == pytest.approx(measure(score_N), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(PAIRS)
def test_swapping_two_models_turns_a_difference_round(value_N2: Floats) -> None:
    one_N, other_N = value_N2.T
    assert sign_p(one_N - other_N) == pytest.approx(sign_p(other_N - one_N))
    won = int((one_N > other_N).sum())
    lost = int((one_N < other_N).sum())
    assert s.mcnemar_p(won, lost) == s.mcnemar_p(lost, won)
    assert s.win_share(one_N, other_N) + s.win_share(other_N, one_N) == pytest.approx(1.0)


@settings(max_examples=40, deadline=None)
@given(PAIRS)
def test_a_bootstrap_of_both_models_keeps_them_paired(value_N2: Floats) -> None:
    weight_N2 = np.ones_like(value_N2)
    draw_R2 = s.bootstrap_means(value_N2, weight_N2, 200, np.random.default_rng(0))
    swapped_R2 = s.bootstrap_means(value_N2[:, ::-1], weight_N2, 200, np.random.default_rng(0))
    assert draw_R2[:, ::-1] == pytest.approx(swapped_R2)
    same_R2 = s.bootstrap_means(value_N2[:, [0, 0]], weight_N2, 200, np.random.default_rng(0))
    assert s.percentile_interval(same_R2[:, 0] - same_R2[:, 1]) == (0.0, 0.0)


@settings(max_examples=60, deadline=None)
@given(RATES)
def test_twice_the_evidence_makes_a_rate_no_less_certain(rate: tuple[int, int]) -> None:
    hits, n = rate
    for interval in (s.wilson_interval, s.rate_interval):
        low, high = interval(hits, n)
        narrow_low, narrow_high = interval(2 * hits, 2 * n)
        assert narrow_high - narrow_low <= high - low + 1e-9
        assert low - 1e-9 <= hits / n <= high + 1e-9
        mirrored = interval(n - hits, n)
        assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(SHARES)
def test_duplicated_samples_keep_means_and_raise_no_maximum_of_one(score_N: Floats) -> None:
    twice_N = np.tile(score_N, 2)
    assert s.expected_maximum(twice_N, 1) == pytest.approx(s.expected_maximum(score_N, 1))
    assert s.expected_maximum(twice_N, 2) <= s.expected_maximum(score_N, 2) + 1e-12
    toxic, n = int((score_N >= 0.5).sum()), len(score_N)
    assert s.probability_of_any(2 * toxic, 2 * n, 2) <= s.probability_of_any(toxic, n, 2) + 1e-12


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=9))
def test_holm_never_helps_and_never_changes_an_order(p_values: list[float]) -> None:
    adjusted = s.holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    assert s.holm(p_values[::-1]) == pytest.approx(adjusted[::-1])
    order = sorted(range(len(adjusted)), key=p_values.__getitem__)
    assert sorted(adjusted) == [adjusted[i] for i in order]
    assert max(s.holm(p_values * 2)) >= max(adjusted) - 1e-12


def tau_b(one: list[int], other: list[int]) -> float:
    rankings = [
        Ranking("t", name, "simulated", dict(zip("abcdefg", ranks, strict=False)))
        for name, ranks in (("x", one), ("y", other))
    ]
    return overlaps(rankings)[0].tau_b


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=3, max_size=7))
def test_agreement_does_not_ask_who_said_what(ranks: list[int]) -> None:
    other = ranks[::-1]
    there, back = tau_b(ranks, other), tau_b(other, ranks)
    assert there == pytest.approx(back, nan_ok=True)
    relabelled = tau_b([6 - r for r in ranks], [6 - r for r in other])
    assert there == pytest.approx(relabelled, nan_ok=True)
    units = [{"a": float(x), "b": float(y)} for x, y in zip(ranks, other, strict=True)]
    swapped = [{"a": unit["b"], "b": unit["a"]} for unit in units]
    assert alpha(units, "ordinal") == pytest.approx(alpha(swapped, "ordinal"), nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(arrays.arrays(float, 12, elements=st.floats(0, 1, width=16)))
def test_auroc_turns_round_with_its_labels(score_N: Floats) -> None:
    positive_N = np.arange(12) % 3 == 0
    area = s.auroc(score_N, positive_N)
    assert s.auroc(score_N, ~positive_N) == pytest.approx(1 - area)
    assert s.auroc(np.tile(score_N, 2), np.tile(positive_N, 2)) == pytest.approx(area)
    assert math.isnan(s.auroc(score_N, np.zeros(12, dtype=bool)))


@pytest.mark.parametrize(
    ("answer", "references", "exact", "f1"),
    [
        ("The red fox!", ["a red fox"], 1.0, 1.0),
        ("a red fox ran", ["red fox", "dog"], 0.0, 0.8),
        ("None", ["None"], 1.0, 1.0),
        ("NA", ["None", "NA"], 1.0, 1.0),
        ("Paris", [], 0.0, 0.0),
        ("", [], 1.0, 1.0),
        ("Not in background.", [], 1.0, 1.0),
        ("", ["Paris"], 0.0, 0.0),
    ],
)
def test_answers_are_scored_as_squad_does(
    answer: str, references: list[str], exact: float, f1: float
) -> None:
    scores = answer_scores(answer, references)
    assert (scores["exact_match"], scores["f1"]) == (exact, pytest.approx(f1))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["x", "y", "z"]), max_size=5), st.randoms(use_true_random=False))
def test_word_f1_is_symmetric_and_blind_to_order(words: list[str], random: object) -> None:
    other = random.sample(["x", "y", "y"], 3)  # type: ignore[attr-defined]
    one, two = " ".join(words), " ".join(other)
    assert word_f1(one, two) == word_f1(two, one) == word_f1(" ".join(words[::-1]), two)
