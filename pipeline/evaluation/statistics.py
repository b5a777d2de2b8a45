"""The certainty of a number: intervals by resampling prompts, paired tests, correction, power.

The prompt is the unit: its samples are averaged first, prompts are resampled together, and two
models are compared on the same prompts. Pure functions of numpy arrays; randomness is an argument.
scipy has the rest; here stands what they do not have.

Dimension key:  N prompts,  M columns (models),  R resamples,  K samples of one prompt.
"""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from reward_models.intervals import Floats, Interval

LEVEL = 0.95
_CHUNK = 1_000_000  # numbers held at once while resampling
_EXACT_FLIPS = 14  # with this many prompts or fewer every sign pattern is tried


def bootstrap_means(
    value_NM: Floats, weight_NM: Floats, resamples: int, rng: np.random.Generator
) -> Floats:
    """Return weighted means over resampled prompts, (R, M). All columns see the same resample.

    A weight of 0 takes a prompt out of a column; its value is then ignored, NaN included. A
    resample without any weight gives NaN. Differences of two columns are a paired bootstrap
    (Efron & Tibshirani 1993, chapter 6).
    """
    prompts = value_NM.shape[0]
    product_NM = np.where(weight_NM > 0, value_NM, 0.0) * weight_NM
    rows = max(1, _CHUNK // prompts)
    parts = []
    for start in range(0, resamples, rows):
        count_RN = _resample_counts(min(rows, resamples - start), prompts, rng)
        with np.errstate(invalid="ignore"):
            parts.append((count_RN @ product_NM) / (count_RN @ weight_NM))
    return np.concatenate(parts)


def _resample_counts(resamples: int, prompts: int, rng: np.random.Generator) -> Floats:
    """The times each prompt is drawn in each resample, (R, N); faster than multinomial draws."""
    drawn_RN = rng.integers(0, prompts, (resamples, prompts))
    drawn_RN += np.arange(resamples)[:, None] * prompts
    count = np.bincount(drawn_RN.ravel(), minlength=resamples * prompts)
    return count.reshape(resamples, prompts).astype(float)


def percentile_interval(draw_R: Floats) -> Interval:
    """Return the central 95 % of the draws; NaN draws are left out, and NaN returned if all are.

    Quantiles of the mid-distribution (Ma, Genton & Parzen 2011), so that an end of a rate's
    interval does not jump by a whole 1/n with the seed. Without ties these are Hazen's quantiles.
    """
    draw_R = draw_R[np.isfinite(draw_R)]
    if not draw_R.size:
        return Interval(math.nan, math.nan)
    value, count = np.unique(draw_R, return_counts=True)
    return _mid_quantiles(value, count / draw_R.size)


def rate_interval(successes: int, trials: int) -> Interval:
    """Return the limit of `percentile_interval` for a rate: its bootstrap is binomial."""
    rate = _rate(successes, trials)
    if successes in (0, trials):
        return Interval(rate, rate)
    k = np.arange(trials + 1)
    return _mid_quantiles(k / trials, stats.binom.pmf(k, trials, rate))


def _mid_quantiles(value: Floats, chance: Floats) -> Interval:
    below = np.cumsum(chance) - chance / 2
    low, high = np.interp([(1 - LEVEL) / 2, (1 + LEVEL) / 2], below, value)
    return Interval(float(low), float(high))


def wilson_interval(successes: int, trials: int) -> Interval:
    """Return Wilson's score interval (1927): sound where n is small or the rate is 0 or 1."""
    _rate(successes, trials)
    interval = stats.binomtest(successes, trials).proportion_ci(LEVEL, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def _rate(successes: int, trials: int) -> float:
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials is not a rate")
    return successes / trials


def sign_flip_p(difference_NM: Floats, flips: int, rng: np.random.Generator) -> list[float]:
    """Return the two-sided p of each column's mean paired difference under random signs.

    Fisher's randomisation test: exact for few prompts, otherwise Monte Carlo with the observed
    pattern counted as one draw. Zeros (prompts without a difference) change nothing.
    """
    observed_M = np.abs(difference_NM.sum(axis=0)) * (1 - 1e-12)
    rows, extreme_M = max(1, _CHUNK // len(difference_NM)), np.zeros(len(observed_M), dtype=int)
    for start in range(0, flips, rows):
        shape = (min(rows, flips - start), len(difference_NM))
        sign_RN = 1.0 - 2.0 * rng.integers(0, 2, shape, dtype=np.int8)
        extreme_M += (np.abs(sign_RN @ difference_NM) >= observed_M).sum(axis=0)
    return [
        _exact_sign_flip_p(difference_N[difference_N != 0], observed)
        if np.count_nonzero(difference_N) <= _EXACT_FLIPS
        else (extreme + 1) / (flips + 1)
        for difference_N, observed, extreme in zip(
            difference_NM.T, observed_M, extreme_M.tolist(), strict=True
        )
    ]


def _exact_sign_flip_p(difference_N: Floats, observed: float) -> float:
    pattern = np.arange(2**difference_N.size)[:, None] >> np.arange(difference_N.size) & 1
    return float((np.abs((1 - 2.0 * pattern) @ difference_N) >= observed).mean())


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p of McNemar's test on the counts of discordant pairs (1947)."""
    trials = only_first + only_second
    return float(stats.binomtest(only_first, trials).pvalue) if trials else 1.0


def holm(p_values: list[float]) -> list[float]:
    """Return Holm's adjusted p values (1979): each bounds the family-wise error.

    Not from statsmodels, which collects the garbage of the whole process at every call.
    """
    order_N = np.argsort(p_values)
    scaled_N = np.sort(p_values) * np.arange(len(p_values), 0, -1)
    adjusted_N = np.empty_like(scaled_N)
    adjusted_N[order_N] = np.minimum(np.maximum.accumulate(scaled_N), 1.0)
    return [float(p) for p in adjusted_N]


def win_share(score_K: Floats, other_K: Floats, tie: float = 0.0) -> float:
    """Return the share of sample pairs that the first wins; a gap of at most `tie` counts half."""
    gap_KK = score_K[:, None] - other_K[None, :]
    return float(np.where(np.abs(gap_KK) <= tie, 0.5, gap_KK > 0).mean())


def expected_maximum(score_K: Floats, k: int) -> float:
    """Return the exact expectation of the largest of `k` scores drawn without replacement.

    The i-th smallest is the maximum of comb(i - 1, k - 1) of the comb(n, k) subsets; this is the
    expected maximum toxicity of Gehman et al. 2020 for any k up to the number of generations.
    """
    n = score_K.size
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}, expected 1 to the {n} samples there are")
    subsets = math.comb(n, k)
    share = [math.comb(i - 1, k - 1) / subsets for i in range(1, n + 1)]
    return float(np.sort(score_K) @ np.array(share))


def probability_of_any(flagged: int, n: int, k: int) -> float:
    """Return the exact chance that `k` of `n` samples, of which some are flagged, hold one."""
    if not (1 <= k <= n and 0 <= flagged <= n):
        raise ValueError(f"k is {k} and flagged {flagged}, expected both within n = {n}")
    return 1 - math.comb(n - flagged, k) / math.comb(n, k)


def minimum_detectable_effect(difference_N: Floats, power: float = 0.8) -> float:
    """Return the mean paired difference that this many prompts would show with this power."""
    if difference_N.size < 2:
        return math.nan
    normal = NormalDist()
    z = normal.inv_cdf((1 + LEVEL) / 2) + normal.inv_cdf(power)
    return z * float(difference_N.std(ddof=1)) / math.sqrt(difference_N.size)


def auroc(score_N: Floats, positive_N: NDArray[np.bool_]) -> float:
    """Return the chance that a positive scores above a negative, ties half (Mann-Whitney)."""
    pairs = int(positive_N.sum()) * int((~positive_N).sum())
    if not pairs:
        return math.nan
    return float(stats.mannwhitneyu(score_N[positive_N], score_N[~positive_N]).statistic) / pairs
