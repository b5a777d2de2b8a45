"""How sure a number is: intervals by resampling prompts, paired tests, correction, power.

The prompt is the unit: its samples are averaged first, prompts are resampled together, and two
models are compared on the same prompts. Pure functions of numpy arrays; randomness is an argument.

Dimension key:  N prompts,  M columns (models),  R resamples,  K samples of one prompt.
"""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_CHUNK = 1_000_000  # numbers held at once while resampling
_EXACT_FLIPS = 14  # with this many prompts or fewer every sign pattern is tried


def bootstrap_means(
    value_NM: Floats, weight_NM: Floats, resamples: int, rng: np.random.Generator
) -> Floats:
    """Weighted means over resampled prompts, (R, M). All columns see the same resample.

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
    """How often each prompt is drawn in each resample, (R, N); faster than drawing multinomials."""
    drawn_RN = rng.integers(0, prompts, (resamples, prompts))
    drawn_RN += np.arange(resamples)[:, None] * prompts
    count = np.bincount(drawn_RN.ravel(), minlength=resamples * prompts)
    return count.reshape(resamples, prompts).astype(float)


def percentile_interval(draw_R: Floats, level: float = 0.95) -> tuple[float, float]:
    """The central `level` of the draws; NaN draws are left out, and NaN returned if all are.

    Quantiles of the mid-distribution (Ma, Genton & Parzen 2011), so that an end of a rate's
    interval does not jump by a whole 1/n with the seed. Without ties these are Hazen's quantiles.
    """
    kept = draw_R[np.isfinite(draw_R)]
    if not kept.size:
        return math.nan, math.nan
    value, count = np.unique(kept, return_counts=True)
    return _mid_quantiles(value, count / kept.size, level)


def rate_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """What `percentile_interval` tends to for a rate: its bootstrap distribution is binomial."""
    _check_rate(successes, trials)
    if successes in (0, trials):
        return successes / trials, successes / trials
    rate = successes / trials
    log_factorial = np.array([math.lgamma(k + 1) for k in range(trials + 1)])
    k = np.arange(trials + 1)
    log_chance = (
        log_factorial[-1] - log_factorial - log_factorial[::-1]
        + k * math.log(rate) + (trials - k) * math.log1p(-rate)
    )  # fmt: skip
    return _mid_quantiles(k / trials, np.exp(log_chance), level)


def _mid_quantiles(value: Floats, chance: Floats, level: float) -> tuple[float, float]:
    below = np.cumsum(chance) - chance / 2
    low, high = np.interp([(1 - level) / 2, (1 + level) / 2], below, value)
    return float(low), float(high)


def _check_rate(successes: float, trials: int) -> None:
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials is not a rate")


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927): sound where n is small or the rate is 0 or 1."""
    _check_rate(successes, trials)
    z = NormalDist().inv_cdf((1 + level) / 2)
    rate = successes / trials
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    inside = rate * (1 - rate) / trials + z * z / (4 * trials * trials)
    half = z * math.sqrt(inside) / (1 + z * z / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def sign_flip_p(difference_NM: Floats, flips: int, rng: np.random.Generator) -> list[float]:
    """Two-sided p of each column's mean paired difference under random signs of its prompts.

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
    """Exact two-sided p of McNemar's test on the two counts of discordant pairs (1947)."""
    trials = only_first + only_second
    if trials == 0:
        return 1.0
    tail = sum(math.comb(trials, k) for k in range(min(only_first, only_second) + 1))
    return float(min(1.0, 2 * tail / 2**trials))


def holm(p_values: list[float]) -> list[float]:
    """Holm's adjusted p values (1979), in the order given: each bounds the family-wise error."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, running)
    return adjusted


def win_share(score_K: Floats, other_K: Floats, tie: float = 0.0) -> float:
    """Share of sample pairs of a prompt that the first wins; a gap of at most `tie` counts half."""
    gap_KK = score_K[:, None] - other_K[None, :]
    return float(np.where(np.abs(gap_KK) <= tie, 0.5, gap_KK > 0).mean())


def pair_agreement(verdict_N: Floats, other_N: Floats) -> float:
    """How far two judges of the same pairs agree: 1 if alike, 1/2 if one ties, 0 if opposed.

    Verdicts are 1, 1/2 (a tie) or 0. Where nobody ties this is the share of equal verdicts.
    """
    return float((1 - np.abs(verdict_N - other_N)).mean()) if verdict_N.size else math.nan


def expected_maximum(score_K: Floats, k: int) -> float:
    """Exact expectation of the largest of `k` scores drawn without replacement from all of them.

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
    """Exact chance that `k` of `n` samples, `flagged` of which are flagged, hold a flagged one."""
    if not (1 <= k <= n and 0 <= flagged <= n):
        raise ValueError(f"k is {k} and flagged {flagged}, expected both within n = {n}")
    return 1 - math.comb(n - flagged, k) / math.comb(n, k)


def minimum_detectable_effect(
    difference_N: Floats, power: float = 0.8, level: float = 0.95
) -> float:
    """The mean paired difference that this many prompts would show with this power (two-sided)."""
    if difference_N.size < 2:
        return math.nan
    normal = NormalDist()
    z = normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)
    return z * float(difference_N.std(ddof=1)) / math.sqrt(difference_N.size)


def auroc(score_N: Floats, positive_N: NDArray[np.bool_]) -> float:
    """Chance that a positive scores above a negative, ties half (Mann & Whitney 1947)."""
    positives = int(positive_N.sum())
    negatives = positive_N.size - positives
    if not positives or not negatives:
        return math.nan
    _, inverse_N, count = np.unique(score_N, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2
    rank_sum = float(mean_rank[inverse_N][positive_N].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)
