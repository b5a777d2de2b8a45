"""Accuracy and calibration of scores on held-out rankings, and their correlation with length.

Numpy only. Every rate comes with the 95 % interval of a bootstrap that draws prompts, because pairs
of one prompt share responses and are not independent.

Dimension key:  N comparisons,  B prompts,  R bootstrap resamples.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reward_models.intervals import Floats, Ints, Rate, rate_by_prompt, resamples
from reward_models.records import Ranking


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Untied human (or simulated) preferences with the scores of both responses.

    `gap_N` is score of the preferred response minus the other's, `prompt_N` numbers the prompt, and
    `same_model_N` tells whether one policy wrote both.
    """

    gap_N: Floats
    prompt_N: Ints
    same_model_N: NDArray[np.bool_]

    def where(self, kept_N: NDArray[np.bool_]) -> "Comparisons":
        """Those that are kept."""
        return Comparisons(self.gap_N[kept_N], self.prompt_N[kept_N], self.same_model_N[kept_N])


def pair_accuracy(comparisons: Comparisons, rng: np.random.Generator) -> Rate:
    """Share of comparisons whose preferred response scores higher; equal scores count one half."""
    return rate_by_prompt(_right(comparisons.gap_N), comparisons.prompt_N, rng)


def by_confidence(
    comparisons: Comparisons, rng: np.random.Generator, num_bins: int = 5
) -> list[dict[str, Any]]:
    """The calibration curve: in equal bins of the predicted probability, how often it came true.

    The prediction for a pair is sigmoid(|gap|), .5 to 1: the chance that the higher score wins.
    A calibrated model's accuracy in a bin is the bin's mean prediction.
    """
    predicted_N = 1.0 / (1.0 + np.exp(-np.abs(comparisons.gap_N)))
    edges = np.linspace(0.5, 1.0, num_bins + 1)
    bin_N = np.clip(np.digitize(predicted_N, edges) - 1, 0, num_bins - 1)
    rows = []
    for number in range(num_bins):
        inside = bin_N == number
        accuracy = pair_accuracy(comparisons.where(inside), rng)
        predicted = float(predicted_N[inside].mean()) if inside.any() else None
        rows.append(
            {"from": edges[number], "to": edges[number + 1], "predicted": predicted}
            | {"accuracy": accuracy.to_json()}
        )
    return rows


def calibration_error(comparisons: Comparisons, num_bins: int = 10) -> float | None:
    """Expected calibration error: mean over pairs of |accuracy - prediction| of their bin."""
    if comparisons.gap_N.size == 0:
        return None
    predicted_N = 1.0 / (1.0 + np.exp(-np.abs(comparisons.gap_N)))
    bin_N = np.minimum(((predicted_N - 0.5) * 2 * num_bins).astype(int), num_bins - 1)
    excess_N = _right(comparisons.gap_N) - predicted_N
    return float(np.abs(np.bincount(bin_N, weights=excess_N)).sum() / predicted_N.size)


def length_correlation(
    score_N: Floats, length_N: Floats, prompt_N: Ints, rng: np.random.Generator
) -> dict[str, Any]:
    """Pearson correlation of score and response length within prompts, and over all responses.

    Within: both are centred on their prompt's mean first, so that prompts which call for long
    responses do not count as a taste for length. None where either does not vary.
    """
    if score_N.size == 0:
        return {"within_prompt": None, "ci95": None, "overall": None, "n_responses": 0}
    _, prompt_N = np.unique(prompt_N, return_inverse=True)
    count_B = np.bincount(prompt_N)
    score_c_N = score_N - (np.bincount(prompt_N, weights=score_N) / count_B)[prompt_N]
    length_c_N = length_N - (np.bincount(prompt_N, weights=length_N) / count_B)[prompt_N]
    products = (score_c_N * length_c_N, score_c_N**2, length_c_N**2)
    sums_B3 = np.stack([np.bincount(prompt_N, weights=product) for product in products], axis=1)
    within = _correlation(sums_B3.sum(0)[None])[0]
    drawn_R3 = np.concatenate([times_RB @ sums_B3 for times_RB in resamples(count_B.size, rng)])
    varies = bool(np.isfinite(within))
    x_N, y_N = score_N - score_N.mean(), length_N - length_N.mean()
    overall = _correlation(np.asarray([[x_N @ y_N, x_N @ x_N, y_N @ y_N]]))[0]
    return {
        "within_prompt": float(within) if varies else None,
        "ci95": np.nanquantile(_correlation(drawn_R3), (0.025, 0.975)).tolist() if varies else None,
        "overall": float(overall) if np.isfinite(overall) else None,
        "n_responses": int(score_N.size),
    }


def _right(gap_N: Floats) -> Floats:
    return np.where(gap_N > 0, 1.0, np.where(gap_N == 0, 0.5, 0.0))


def _correlation(sums_R3: Floats) -> Floats:
    """Pearson's r from sums of (xy, xx, yy), NaN where x or y does not vary."""
    spread_R = np.sqrt(sums_R3[:, 1] * sums_R3[:, 2])
    blank_R = np.full_like(spread_R, np.nan)
    return np.divide(sums_R3[:, 0], spread_R, out=blank_R, where=spread_R > 1e-12)


def oracle_accuracy(agreement: Floats) -> Floats:
    """c from a, elementwise; .5 where annotators agree no more than by chance."""
    return (1.0 + np.sqrt(np.maximum(2.0 * agreement - 1.0, 0.0))) / 2.0


def noise_ceiling(rankings: Iterable[Ranking], rng: np.random.Generator) -> dict[str, Any] | None:
    """Agreement and what it lets one reach, with intervals; None if no pair was ordered twice."""
    agree: list[float] = []
    agree_task: list[int] = []
    majority: list[float] = []
    majority_task: list[int] = []
    for task, votes in _votes(rankings):
        for vote in votes:
            others, alike = len(votes) - 1, votes.count(vote) - 1
            if others >= 1:
                agree.append(alike / others)
                agree_task.append(task)
            if others >= 2:
                majority.append(0.5 if 2 * alike == others else float(2 * alike > others))
                majority_task.append(task)
    if not agree:
        return None
    agree_N, task_N = np.asarray(agree), np.asarray(agree_task)
    led = rate_by_prompt(np.asarray(majority), np.asarray(majority_task, dtype=np.int64), rng)
    return {
        "agreement": rate_by_prompt(agree_N, task_N, rng).to_json(),
        "oracle_accuracy": rate_by_prompt(agree_N, task_N, rng, oracle_accuracy).to_json(),
        "majority_accuracy": led.to_json(),
    }


def _votes(rankings: Iterable[Ranking]) -> Iterator[tuple[int, list[bool]]]:
    """For each pair of responses: its task's number, and for each who ordered it, which way."""
    votes: dict[tuple[str, str, str], list[bool]] = defaultdict(list)
    numbers: dict[str, int] = {}
    for ranking in rankings:
        numbers.setdefault(ranking.task, len(numbers))
        for better, worse in ranking.comparisons():
            first, second = sorted((better, worse))
            votes[ranking.task, first, second].append(first == better)
    for (task, _, _), given in votes.items():
        yield numbers[task], given
