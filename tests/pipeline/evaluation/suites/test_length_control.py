"""Win rates at equal length: hand-worked cases, another library's fit, and what is refused."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from pipeline.evaluation.suites.preference import length_controlled, length_matched


def draw(b0: float, b1: float, prompts: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    gap_N = rng.normal(0.4, 1.0, prompts) * 30
    chance_N = expit(b0 + b1 * np.tanh(gap_N / gap_N.std()))
    return (rng.random(prompts) < chance_N).astype(float), gap_N


def test_what_length_bought_is_taken_away():
    win_N, gap_N = draw(0.0, 1.5)
    assert win_N.mean() > 0.56
    assert length_controlled(win_N, gap_N).mean() == pytest.approx(0.5, abs=0.03)


def test_where_length_does_not_matter_nothing_changes():
    win_N, gap_N = draw(0.6, 0.0)
    assert length_controlled(win_N, gap_N).mean() == pytest.approx(win_N.mean(), abs=0.01)


def test_without_a_difference_in_length_it_is_the_raw_rate():
    win_N = np.array([1.0, 0.5, 0.0, 1.0])
    assert length_controlled(win_N, np.zeros(4)) == pytest.approx(win_N)


def test_the_fit_is_scipys():
    win_N, gap_N = draw(0.3, 0.8, prompts=200)
    pull_N = np.tanh(gap_N / gap_N.std())

    def loss(beta: np.ndarray) -> float:
        chance_N = expit(beta[0] + beta[1] * pull_N)
        log_likelihood_N = win_N * np.log(chance_N) + (1 - win_N) * np.log(1 - chance_N)
        return float(-log_likelihood_N.sum() + 0.5 * beta[1] ** 2)

    b0 = minimize(loss, np.zeros(2), tol=1e-12).x[0]
    assert length_controlled(win_N, gap_N).mean() == pytest.approx(expit(b0), abs=1e-5)


def test_the_spread_with_the_fit_held_fixed_is_near_that_with_refitting():
    win_N, gap_N = draw(0.2, 0.7, prompts=400)
    rng = np.random.default_rng(1)
    value_N, again = length_controlled(win_N, gap_N), []
    for _ in range(300):
        rows = rng.integers(0, 400, 400)
        again.append(length_controlled(win_N[rows], gap_N[rows]).mean())
    assert value_N.std() / math.sqrt(400) == pytest.approx(np.std(again), rel=0.25)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.9, 1.0])
def test_extremes_are_refused(rate: float):
    win_N = np.array([1.0] * int(100 * rate) + [0.0] * (100 - int(100 * rate)))
    assert np.isnan(length_controlled(win_N, np.arange(100.0))).all()


def test_relabelling_the_models_turns_the_rate_round():
    win_N, gap_N = draw(0.3, 0.8, prompts=300)
    there, back = length_controlled(win_N, gap_N), length_controlled(1 - win_N, -gap_N)
    assert there.mean() + back.mean() == pytest.approx(1.0)


def test_shuffling_and_duplicating_prompts_change_nothing():
    win_N, gap_N = draw(0.3, 0.8, prompts=300)
    order = np.random.default_rng(0).permutation(300)
    shuffled = length_controlled(win_N[order], gap_N[order])
    assert shuffled == pytest.approx(length_controlled(win_N, gap_N)[order])
    twice = length_controlled(np.tile(win_N, 2), np.tile(gap_N, 2))
    assert twice.mean() == pytest.approx(length_controlled(win_N, gap_N).mean(), abs=2e-3)  # prior


def test_only_pairs_of_about_equal_length_are_matched():
    win_N = np.tile([1.0, 0.0], 15)
    same_N = length_matched(win_N, np.full(30, 105.0), np.full(30, 100.0))
    assert same_N == pytest.approx(win_N)
    mixed_N = length_matched(
        np.ones(30), np.r_[np.full(25, 90.0), np.full(5, 150.0)], np.full(30, 100.0)
    )
    assert np.isnan(mixed_N).sum() == 5


def test_too_few_pairs_of_equal_length_are_refused():
    assert np.isnan(length_matched(np.ones(30), np.full(30, 200.0), np.full(30, 100.0))).all()
