"""Agreement between annotators: over pairs of responses, by tau-b, by Krippendorff's alpha.

A ranking is used as the signs of its pairs: +1 where the first response of a pair is better, -1
where the second is, 0 for a tie. For two rankings with signs s and t of the same responses

    tau-b = sum(s t) / sqrt(sum |s|  sum |t|)          (Kendall 1945, ties on both sides)

and over pairs that neither ties, the share of s = t is the agreement that Ouyang et al. 2022
report (section 3.4: 72.6 +- 1.5 % among training labelers).

Dimension key:  A annotators,  K responses to a prompt,  P pairs of them,  U units,  C categories,
    N values.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Literal

import krippendorff
import numpy as np
from numpy.typing import NDArray

from reward_models.intervals import Rate, rate_of_counts
from reward_models.records import Ranking

Level = Literal["nominal", "ordinal", "interval"]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two annotators' rankings of one task, compared: counts over its pairs of responses."""

    task: str
    one: str
    other: str
    same: int  # both strict, same order
    strict: int  # both strict
    one_tied: int  # tied by one of them only
    both_tied: int
    tau_b: float  # NaN where one of them ties everything


def signs(ranks: Sequence[float]) -> NDArray[np.int64]:
    """Return the sign of every pair of responses, in the order of `itertools.combinations`."""
    rank_K = np.asarray(ranks)
    first_P, second_P = _pairs(len(rank_K))
    sign_P: NDArray[np.int64] = np.sign(rank_K[second_P] - rank_K[first_P]).astype(np.int64)
    return sign_P


@lru_cache(64)
def _pairs(num_responses: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    first_P, second_P = np.triu_indices(num_responses, 1)
    return first_P, second_P


def overlaps(rankings: Iterable[Ranking]) -> list[Overlap]:
    """Compare every two annotators' rankings of one task. Skips are left out."""
    ranked = sorted(
        (ranking for ranking in rankings if ranking.skipped is None),
        key=lambda ranking: (ranking.task, ranking.annotator),
    )
    compared: list[Overlap] = []
    for task, group in groupby(ranked, key=lambda ranking: ranking.task):
        compared += _compared(task, list(group))
    return compared


def _compared(task: str, rankings: Sequence[Ranking]) -> list[Overlap]:
    if len(rankings) < 2:
        return []
    names = sorted(rankings[0].ranks)
    sign_AP = np.stack([signs([r.ranks[name] for name in names]) for r in rankings])
    strict_AP = np.abs(sign_AP)
    product_AA, strict_AA = sign_AP @ sign_AP.T, strict_AP @ strict_AP.T
    untied_A, num_pairs = strict_AP.sum(1), sign_AP.shape[1]
    compared = []
    for i in range(len(rankings)):
        for j in range(i + 1, len(rankings)):
            strict, untied = int(strict_AA[i, j]), int(untied_A[i]) * int(untied_A[j])
            one_tied = int(untied_A[i] + untied_A[j]) - 2 * strict
            compared.append(
                Overlap(
                    task=task,
                    one=rankings[i].annotator,
                    other=rankings[j].annotator,
                    same=(int(product_AA[i, j]) + strict) // 2,
                    strict=strict,
                    one_tied=one_tied,
                    both_tied=num_pairs - strict - one_tied,
                    tau_b=product_AA[i, j] / untied**0.5 if untied else float("nan"),
                )
            )
    return compared


def agreement(compared: Iterable[Overlap], rng: np.random.Generator) -> Rate:
    """Return the share of pairs ordered alike, among pairs that both annotators order."""
    return share(list(pairs_by_task(compared).values()), rng)


def pairs_by_task(compared: Iterable[Overlap]) -> dict[str, tuple[int, int]]:
    """Return the pairs ordered alike, and those that both annotators order, by task."""
    pairs: dict[str, tuple[int, int]] = {}
    for overlap in compared:
        same, strict = pairs.get(overlap.task, (0, 0))
        pairs[overlap.task] = (same + overlap.same, strict + overlap.strict)
    return pairs


def share(counts: Sequence[tuple[int, int]], rng: np.random.Generator) -> Rate:
    """Return hits over counts, summed over tasks, with a bootstrap interval over the tasks."""
    hit_B, of_B = np.array(counts, np.int64).reshape(-1, 2).T
    return rate_of_counts(hit_B, of_B, rng)


def mean_tau_b(compared: Iterable[Overlap]) -> float | None:
    """Return the mean of tau-b, where it is defined."""
    values = [overlap.tau_b for overlap in compared if overlap.tau_b == overlap.tau_b]
    return float(np.mean(values)) if values else None


def alpha(units: Iterable[Mapping[str, float]], level: Level) -> float | None:
    """Return Krippendorff's alpha of values given by annotators (name to value) to units.

    None where it is undefined: no unit with two values, or one value throughout
    (Krippendorff 2011, "Computing Krippendorff's alpha-reliability").
    """
    rows = [list(unit.values()) for unit in units if len(unit) > 1]
    domain = sorted({value for row in rows for value in row})
    if len(domain) < 2:
        return None
    unit_N = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    value_N = np.searchsorted(domain, [value for row in rows for value in row])
    count_UC = np.zeros((len(rows), len(domain)))
    np.add.at(count_UC, (unit_N, value_N), 1)
    return float(
        krippendorff.alpha(value_counts=count_UC, value_domain=domain, level_of_measurement=level)
    )


def rating_units(rankings: Iterable[Ranking]) -> list[dict[str, float]]:
    """Return the overall ratings of each response, by annotator."""
    return _units((ranking, ranking.ratings) for ranking in rankings)


def rank_units(rankings: Iterable[Ranking]) -> list[dict[str, float]]:
    """Return the rank of each response, by annotator.

    Annotators who give an order only have no other number; that the ranks of one task depend on
    each other lowers what chance would give.
    """
    return _units((ranking, ranking.ranks) for ranking in rankings)


def flag_units(rankings: Iterable[Ranking], flag: str) -> list[dict[str, float]]:
    """Return yes (1) or no (0) to a question about each response; the unanswered is a gap."""
    return _units(
        (ranking, {name: value for name in flags if flag in flags[name]})
        for ranking in rankings
        for flags, value in ((ranking.flags, 1), (ranking.extra.get("flags_no", {}), 0))
    )


def _units(values: Iterable[tuple[Ranking, Mapping[str, float]]]) -> list[dict[str, float]]:
    units: dict[tuple[str, str], dict[str, float]] = {}
    for ranking, by_response in values:
        for response, value in by_response.items():
            units.setdefault((ranking.task, response), {})[ranking.annotator] = value
    return list(units.values())
