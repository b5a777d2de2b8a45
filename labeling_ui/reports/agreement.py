"""How far annotators agree: over pairs of responses, by tau-b, and by Krippendorff's alpha.

A ranking is used as the signs of its pairs: +1 where the first response of a pair is better, -1
where the second is, 0 for a tie. For two rankings with signs s and t of the same responses

    tau-b = sum(s t) / sqrt(sum |s|  sum |t|)          (Kendall 1945, ties on both sides)

and over pairs that neither ties, the share of s = t is the agreement that Ouyang et al. 2022
report (section 3.4: 72.6 +- 1.5 % among training labelers).

Dimension key:  A annotators,  K responses to a prompt,  P pairs of them,  U units,  C categories,
    D draws,  N values.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reward_models.intervals import Rate, rate_of_counts
from reward_models.records import Ranking

Floats = NDArray[np.float64]
Level = Literal["nominal", "ordinal", "interval"]


@dataclass(frozen=True, slots=True)
class Overlap:
    """What two annotators said about one task: counts over its pairs of responses."""

    task: str
    one: str
    other: str
    same: int  # both strict, same order
    strict: int  # both strict
    one_tied: int  # tied by one of them only
    both_tied: int
    tau_b: float  # NaN where one of them ties everything


def signs(ranks: Sequence[int]) -> NDArray[np.int64]:
    """The sign of every pair of responses, in the order of `itertools.combinations`."""
    rank_K = np.asarray(ranks)
    first_P, second_P = _pairs(len(rank_K))
    sign_P: NDArray[np.int64] = np.sign(rank_K[second_P] - rank_K[first_P])
    return sign_P


@lru_cache(64)
def _pairs(num_responses: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    first_P, second_P = np.triu_indices(num_responses, 1)
    return first_P, second_P


def tau_b(one: Sequence[int], other: Sequence[int]) -> float:
    """Kendall's tau-b of two rankings of the same responses; NaN if one of them ties all."""
    sign_P, other_P = signs(one), signs(other)
    untied = float(np.abs(sign_P).sum() * np.abs(other_P).sum())
    return float((sign_P * other_P).sum() / np.sqrt(untied)) if untied else float("nan")


def overlaps(rankings: Iterable[Ranking]) -> list[Overlap]:
    """Every two annotators' rankings of one task, compared. Skips are left out."""
    ranked = sorted(
        (ranking for ranking in rankings if ranking.skipped is None),
        key=lambda ranking: (ranking.task, ranking.annotator),
    )
    found: list[Overlap] = []
    for task, group in groupby(ranked, key=lambda ranking: ranking.task):
        found += _compared(task, list(group))
    return found


def _compared(task: str, rankings: Sequence[Ranking]) -> list[Overlap]:
    if len(rankings) < 2:
        return []
    names = sorted(rankings[0].ranks)
    sign_AP = np.stack([signs([r.ranks[name] for name in names]) for r in rankings])
    strict_AP = np.abs(sign_AP)
    product_AA, strict_AA = sign_AP @ sign_AP.T, strict_AP @ strict_AP.T
    untied_A, num_pairs = strict_AP.sum(1), sign_AP.shape[1]
    found = []
    for i in range(len(rankings)):
        for j in range(i + 1, len(rankings)):
            strict, untied = int(strict_AA[i, j]), int(untied_A[i]) * int(untied_A[j])
            one_tied = int(untied_A[i] + untied_A[j]) - 2 * strict
            found.append(
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
    return found


def agreement(found: Iterable[Overlap], rng: np.random.Generator) -> Rate:
    """The share of pairs ordered alike, among pairs that both annotators order."""
    same: dict[str, int] = {}
    strict: dict[str, int] = {}
    for overlap in found:
        same[overlap.task] = same.get(overlap.task, 0) + overlap.same
        strict[overlap.task] = strict.get(overlap.task, 0) + overlap.strict
    return share([same[task] for task in strict], list(strict.values()), rng)


def share(hits: Sequence[int], of: Sequence[int], rng: np.random.Generator) -> Rate:
    """Sum of hits over sum of counts, task by task, with a bootstrap interval over the tasks."""
    return rate_of_counts(np.asarray(hits, int), np.asarray(of, int), rng)


def mean_tau_b(found: Iterable[Overlap]) -> float | None:
    """The mean of tau-b over every two annotators' rankings of one task, where it is defined."""
    values = [overlap.tau_b for overlap in found if overlap.tau_b == overlap.tau_b]
    return float(np.mean(values)) if values else None


def alpha(units: Iterable[Mapping[str, float]], level: Level) -> float | None:
    """Krippendorff's alpha of values given by annotators (name to value) to units, gaps allowed.

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
    return _alpha_of_counts(count_UC, np.asarray(domain, float), level)


def _alpha_of_counts(count_UC: Floats, domain_C: Floats, level: Level) -> float:
    per_unit_U = count_UC.sum(1)
    weighted_UC = count_UC / (per_unit_U - 1)[:, None]
    coincidence_CC = weighted_UC.T @ count_UC - np.diag(weighted_UC.sum(0))
    total_C = coincidence_CC.sum(0)
    expected_CC = (np.outer(total_C, total_C) - np.diag(total_C)) / (total_C.sum() - 1)
    distance_CC = _distance(domain_C, total_C, level)
    return float(1 - (coincidence_CC * distance_CC).sum() / (expected_CC * distance_CC).sum())


def _distance(domain_C: Floats, total_C: Floats, level: Level) -> Floats:
    """The squared difference of every two values at a level of measurement."""
    match level:
        case "nominal":
            return 1 - np.eye(len(domain_C))
        case "interval":
            return (domain_C[:, None] - domain_C[None, :]) ** 2
        case "ordinal":
            # The count of values from one to the other, the two ends counted half.
            middle_C = np.cumsum(total_C) - total_C / 2
            gap_CC: Floats = (middle_C[:, None] - middle_C[None, :]) ** 2
            return gap_CC


def rating_units(rankings: Iterable[Ranking]) -> list[dict[str, float]]:
    """The overall ratings of each response, by annotator."""
    units: dict[tuple[str, str], dict[str, float]] = {}
    for ranking in rankings:
        for response, rating in ranking.ratings.items():
            units.setdefault((ranking.task, response), {})[ranking.annotator] = rating
    return list(units.values())


def rank_units(rankings: Iterable[Ranking]) -> list[dict[str, float]]:
    """The rank of each response, by annotator. Annotators who are asked for an order only have no
    other number; that the ranks of one task depend on each other lowers what chance would give.
    """
    units: dict[tuple[str, str], dict[str, float]] = {}
    for ranking in rankings:
        for response, rank in ranking.ranks.items():
            units.setdefault((ranking.task, response), {})[ranking.annotator] = rank
    return list(units.values())


def flag_units(rankings: Iterable[Ranking], flag: str) -> list[dict[str, float]]:
    """Who said yes (1) or no (0) to a question about each response; the unanswered is a gap."""
    units: dict[tuple[str, str], dict[str, float]] = {}
    for ranking in rankings:
        for given, value in ((ranking.flags, 1), (ranking.extra.get("flags_no", {}), 0)):
            for response in (name for name, chosen in given.items() if flag in chosen):
                units.setdefault((ranking.task, response), {})[ranking.annotator] = value
    return list(units.values())
