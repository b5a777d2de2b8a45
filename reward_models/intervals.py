"""Rates with 95 % intervals by bootstrap over prompts, for data that are not independent.

Pairs of one prompt share responses, and several annotators rank the same ones: prompts are drawn,
never pairs.

Dimension key:  N values,  B prompts,  R bootstrap resamples.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
RESAMPLES = 1000
_CHUNK = 10_000_000  # counts held at once while resampling


class Interval(NamedTuple):
    """The ends of a 95 % interval; NaN where there is nothing to resample."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """True where all of the interval is on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Rate:
    """A mean with its 95 % interval by prompt; all None where there is nothing to average."""

    value: float | None
    low: float | None
    high: float | None
    num_pairs: int
    num_prompts: int

    def to_json(self) -> dict[str, Any]:
        """`value`, `ci95`, `n_pairs`, `n_prompts`."""
        return {
            "value": self.value,
            "ci95": None if self.low is None else [self.low, self.high],
            "n_pairs": self.num_pairs,
            "n_prompts": self.num_prompts,
        }


def _identity(mean_R: Floats) -> Floats:
    return mean_R


def rate_by_prompt(
    value_N: Floats,
    prompt_N: Ints,
    rng: np.random.Generator,
    transform: Callable[[Floats], Floats] = _identity,
) -> Rate:
    """Return `transform` of the mean of `value_N`, resampled by the prompts `prompt_N`."""
    if value_N.size == 0:
        return Rate(None, None, None, 0, 0)
    _, prompt_N = np.unique(prompt_N, return_inverse=True)
    sum_B = np.bincount(prompt_N, weights=value_N)
    count_B = np.bincount(prompt_N).astype(np.float64)
    ratio_R = np.concatenate(
        [(times_RB @ sum_B) / (times_RB @ count_B) for times_RB in resamples(count_B.size, rng)]
    )
    low, high = np.quantile(transform(ratio_R), (0.025, 0.975))
    value = float(transform(np.asarray([value_N.mean()]))[0])
    return Rate(value, float(low), float(high), int(value_N.size), count_B.size)


def rate_of_counts(hit_B: Ints, count_B: Ints, rng: np.random.Generator) -> Rate:
    """Return the share of hits among all counts, resampled by prompts that have any.

    Prompts with equal counts are one kind: drawing prompts is drawing how often each kind occurs,
    which is fast for many prompts.
    """
    counts_B2 = np.stack([hit_B, count_B], axis=1)[count_B > 0].astype(np.float64)
    if not counts_B2.size:
        return Rate(None, None, None, 0, 0)
    kind_K2, times_K = np.unique(counts_B2, axis=0, return_counts=True)
    num_prompts = len(counts_B2)
    times_RK = rng.multinomial(num_prompts, times_K / num_prompts, size=RESAMPLES)
    hit_R, total_R = (times_RK @ kind_K2).T
    low, high = np.quantile(hit_R / total_R, (0.025, 0.975))
    hits, total = times_K @ kind_K2
    return Rate(float(hits / total), float(low), float(high), int(total), num_prompts)


def resamples(num_prompts: int, rng: np.random.Generator) -> Iterator[Floats]:
    """Yield, in portions of the resamples, how often each holds each prompt, (R, B)."""
    even = np.full(num_prompts, 1.0 / num_prompts)
    portion = max(1, _CHUNK // num_prompts)
    for start in range(0, RESAMPLES, portion):
        size = min(portion, RESAMPLES - start)
        yield rng.multinomial(num_prompts, even, size=size).astype(np.float64)
