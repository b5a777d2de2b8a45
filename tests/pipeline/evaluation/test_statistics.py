"""The statistics against closed forms, scipy, hand-worked numbers and their own symmetries."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from pipeline.evaluation import statistics as s


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


def test_bootstrap_spread_of_a_mean_is_its_standard_error():
    value_N = rng().normal(size=200)
    draws = s.bootstrap_means(value_N[:, None], np.ones((200, 1)), 20_000, rng())[:, 0]
    assert draws.std() == pytest.approx(value_N.std() / math.sqrt(200), rel=0.02)
    assert draws.mean() == pytest.approx(value_N.mean(), abs=0.002)


def test_bootstrap_interval_agrees_with_scipy():
    value_N = rng().exponential(size=120)
    draws = s.bootstrap_means(value_N[:, None], np.ones((120, 1)), 20_000, rng())[:, 0]
    theirs = stats.bootstrap(
        (value_N,), np.mean, n_resamples=20_000, method="percentile", rng=rng()
    ).confidence_interval
    assert s.percentile_interval(draws) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_bootstrap_in_chunks_covers_every_resample(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(s, "_CHUNK", 35)
    draws = s.bootstrap_means(column(1, 2, 3, 4, 5), np.ones((5, 1)), 23, rng())
    assert draws.shape == (23, 1)
    assert ((draws >= 1) & (draws <= 5)).all()


def test_a_prompt_of_weight_zero_counts_for_nothing():
    value_NM = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [math.nan, 9.0]])
    weight_NM = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    draws = s.bootstrap_means(value_NM, weight_NM, 500, rng())
    assert np.nanmax(draws) <= 3
    assert np.array_equal(draws[:, 0], draws[:, 1], equal_nan=True)


def test_weights_act_as_token_counts():
    draws = s.bootstrap_means(column(1, 5), column(3, 1), 4000, rng())[:, 0]
    assert set(np.round(draws, 9)) == {1.0, 2.0, 5.0}  # (3 * 1 + 1 * 5) / 4 when both are drawn


def test_shuffling_prompts_moves_an_interval_only_by_noise():
    value_N = rng().normal(size=100)
    shuffled_N = np.random.default_rng(5).permutation(value_N)
    ends = [
        s.percentile_interval(s.bootstrap_means(v[:, None], np.ones((100, 1)), 20_000, rng())[:, 0])
        for v in (value_N, shuffled_N)
    ]
    assert ends[0] == pytest.approx(ends[1], abs=0.01)


def test_the_interval_of_a_rate_is_the_limit_of_its_bootstrap():
    for successes in (3, 40, 97):
        value_N1 = column(*[1.0] * successes, *[0.0] * (100 - successes))
        draws = s.bootstrap_means(value_N1, np.ones((100, 1)), 100_000, rng())[:, 0]
        exact = s.rate_interval(successes, 100)
        assert exact == pytest.approx(s.percentile_interval(draws), abs=0.003)
        binomial = stats.binom.ppf([0.025, 0.975], 100, successes / 100) / 100
        assert exact == pytest.approx(tuple(binomial), abs=0.01)
    assert s.rate_interval(0, 5) == (0, 0)


def test_wilson_by_hand():
    # 3 of 10: centre (.3 + z^2 / 20) / (1 + z^2 / 10) = .3555, half width .2477, z = 1.96.
    assert s.wilson_interval(3, 10) == pytest.approx((0.10779, 0.60322), abs=1e-5)
    assert s.wilson_interval(10, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)


def test_wilson_of_no_successes_does_not_collapse():
    low, high = s.wilson_interval(0, 40)
    assert low == pytest.approx(0, abs=1e-12)
    assert high > 0.05


def test_wilson_refuses_what_is_no_rate():
    with pytest.raises(ValueError, match="5 successes of 4 trials"):
        s.wilson_interval(5, 4)


def sign_flip_p(difference_N: np.ndarray, flips: int) -> float:
    return s.sign_flip_p(difference_N[:, None], flips, rng())[0]


def test_sign_flip_is_exact_for_few_prompts():
    assert sign_flip_p(np.array([1.0, 2.0, 3.0]), 10) == pytest.approx(2 / 8)


def test_sign_flip_agrees_with_scipy_permutation_test():
    difference_N = rng().normal(0.15, 1, size=60)
    theirs = stats.permutation_test(
        (difference_N, np.zeros(60)),
        lambda a, b, axis: (a - b).mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=rng(),
    ).pvalue
    p = sign_flip_p(difference_N, 20_000)
    assert p == pytest.approx(theirs, abs=0.015)
    assert sign_flip_p(-difference_N, 20_000) == p  # whichever model comes first


def test_sign_flip_of_equal_models_is_one():
    assert sign_flip_p(np.zeros(30), 100) == 1.0


def test_columns_of_differences_are_tested_as_if_alone():
    difference_NM = rng().normal(0.2, 1, size=(50, 3))
    difference_NM[5:, 1] = 0  # few enough to be exact
    together = s.sign_flip_p(difference_NM, 4000, rng())
    assert together == [sign_flip_p(column_N, 4000) for column_N in difference_NM.T]


def test_an_interval_end_of_a_rate_does_not_jump_by_a_whole_prompt():
    value_N1 = column(*[1.0] * 40, *[0.0] * 60)
    ends = [
        s.percentile_interval(
            s.bootstrap_means(value_N1, np.ones((100, 1)), 10_000, np.random.default_rng(seed))[
                :, 0
            ]
        )
        for seed in range(6)
    ]
    assert np.ptp([low for low, _ in ends]) < 0.004
    assert ends[0] == pytest.approx((0.305, 0.495), abs=0.01)


def test_mcnemar_by_hand():
    assert s.mcnemar_p(0, 6) == pytest.approx(2 / 2**6)
    assert s.mcnemar_p(1, 4) == s.mcnemar_p(4, 1) == pytest.approx(2 * (1 + 5) / 2**5)
    assert s.mcnemar_p(5, 5) == 1.0
    assert s.mcnemar_p(0, 0) == 1.0


def test_sign_flip_of_binary_differences_is_mcnemar():
    difference_N = np.array([1.0] * 9 + [-1.0] * 3 + [0.0] * 20)
    assert sign_flip_p(difference_N, 10) == pytest.approx(s.mcnemar_p(9, 3))


def test_holm_by_hand():
    assert s.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert s.holm([]) == []


def test_win_share_counts_ties_half():
    # pairs: 1-1 tie, 1-0 win, 2-1 win, 2-0 win
    assert s.win_share(np.array([1.0, 2.0]), np.array([1.0, 0.0])) == pytest.approx(3.5 / 4)


def test_a_gap_within_the_tie_is_a_tie():
    assert s.win_share(np.array([1.0]), np.array([1.0 + 1e-8]), tie=1e-6) == 0.5


def test_expected_maximum_is_the_mean_over_all_subsets():
    score_K = rng().uniform(size=7)
    for k in range(1, 8):
        slow = np.mean([max(subset) for subset in itertools.combinations(score_K, k)])
        assert s.expected_maximum(score_K, k) == pytest.approx(slow)


def test_expected_maximum_runs_from_the_mean_to_the_maximum():
    score_K = rng().uniform(size=9)
    assert s.expected_maximum(score_K, 1) == pytest.approx(score_K.mean())
    assert s.expected_maximum(score_K, 9) == pytest.approx(score_K.max())
    with pytest.raises(ValueError, match="k is 10, expected 1 to the 9"):
        s.expected_maximum(score_K, 10)


def test_probability_of_any_is_the_share_of_subsets():
    flags = [True, True, False, False, False]
    for k in range(1, 6):
        slow = np.mean([any(subset) for subset in itertools.combinations(flags, k)])
        assert s.probability_of_any(2, 5, k) == pytest.approx(slow)


def test_minimum_detectable_effect_is_the_power_formula():
    difference_N = rng().normal(size=100)
    sd = difference_N.std(ddof=1)
    assert s.minimum_detectable_effect(difference_N) == pytest.approx(2.8016 * sd / 10, rel=1e-4)
    four_times = np.tile(difference_N, 4)
    assert s.minimum_detectable_effect(four_times) == pytest.approx(
        s.minimum_detectable_effect(difference_N) / 2, rel=0.01
    )


def test_auroc_is_the_share_of_pairs_with_ties_half():
    score_N = rng().integers(0, 6, 80).astype(float)
    positive_N = rng().uniform(size=80) < 0.3
    pairs = itertools.product(score_N[positive_N], score_N[~positive_N])
    expected = np.mean([0.5 if a == b else float(a > b) for a, b in pairs])
    assert s.auroc(score_N, positive_N) == pytest.approx(expected)
    assert s.auroc(-score_N, positive_N) == pytest.approx(1 - expected)


def test_holm_is_statsmodels_s():
    draws = rng()
    for size in (1, 2, 7, 40):
        p_values = draws.choice([*draws.uniform(size=size), 0.0, 1.0, 0.02, 0.02], size).tolist()
        expected = multipletests(p_values, method="holm")[1]
        assert s.holm(p_values) == pytest.approx(expected.tolist(), abs=1e-15)
