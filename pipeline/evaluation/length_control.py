"""Win rates that length cannot buy: regressed on the difference in length, or at equal length.

Controlled (after Dubois et al. 2024): with d the difference in length to the baseline's response,
in standard deviations, win = sigmoid(b0 + b1 tanh(d)) is fitted and d set to 0. b1 has a normal
prior of variance 1; b0 is free, so the mean of what is fitted is the raw rate, and

    value_n = win_n - sigmoid(b0 + b1 tanh(d_n)) + sigmoid(b0)

has the mean sigmoid(b0). These values are resampled and compared like any others, with the fit held
fixed. Near 0 or 1 the regression says more about its form than about the data: refused.

Dimension key:  N prompts.
"""

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.statistics import Floats

EXTREMES = (0.15, 0.85)
NEAR = 0.1  # of the baseline's length: so close are lengths called equal
_FEWEST = 20  # prompts of equal length below which their win rate is refused
_STEPS = 50


def length_controlled(win_N: Floats, gap_N: Floats) -> Floats:
    """A value a prompt whose mean is the win rate at equal length; NaN where it is refused.

    `win_N` is in 0..1 with ties one half, `gap_N` the difference in length, mine minus baseline's.
    """
    rate = float(win_N.mean()) if win_N.size else math.nan
    if not EXTREMES[0] <= rate <= EXTREMES[1]:
        return np.full(win_N.shape, math.nan)
    spread = float(gap_N.std())
    pull_N = np.tanh(gap_N / spread) if spread > 0 else np.zeros(gap_N.shape)
    b0, b1 = _fit(win_N, pull_N)
    return win_N - _sigmoid(b0 + b1 * pull_N) + float(_sigmoid(np.array(b0)))


def length_matched(win_N: Floats, length_N: Floats, other_N: Floats) -> Floats:
    """`win_N` where both responses are about equally long, else NaN; all NaN if too few are."""
    near_N: NDArray[np.bool_] = np.abs(length_N - other_N) <= NEAR * other_N
    if near_N.sum() < _FEWEST:
        return np.full(win_N.shape, math.nan)
    return np.where(near_N, win_N, math.nan)


def _fit(win_N: Floats, pull_N: Floats) -> tuple[float, float]:
    """Penalised maximum likelihood by Newton's method; the problem is concave."""
    design_N2 = np.stack([np.ones_like(pull_N), pull_N], axis=1)
    penalty_2 = np.array([0.0, 1.0])
    beta_2 = np.zeros(2)
    for _ in range(_STEPS):
        fitted_N = _sigmoid(design_N2 @ beta_2)
        gradient_2 = design_N2.T @ (win_N - fitted_N) - penalty_2 * beta_2
        weight_N = fitted_N * (1 - fitted_N)
        curvature_22 = (design_N2 * weight_N[:, None]).T @ design_N2 + np.diag(penalty_2)
        step_2 = np.linalg.solve(curvature_22, gradient_2)
        beta_2 = beta_2 + np.clip(step_2, -2.0, 2.0)
        if np.abs(step_2).max() < 1e-12:
            break
    return float(beta_2[0]), float(beta_2[1])


def _sigmoid(logit_N: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-logit_N))
