"""Judges among the annotators: how far each agrees with people, and what else it goes by.

A judge ranked every task in two orders, one the reverse of the other. A pair that it orders in
both `follows the position` where swapping the responses reversed the verdict. Cohen's kappa counts
a pair as won, lost or tied, with the sides of a pair drawn at random, so that

    expected = t u + (1 - t) (1 - u) / 2,      kappa = (observed - expected) / (1 - expected)

for two annotators who tie the shares t and u of their pairs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np

from labeling_ui.reports.agreement import agreement, mean_tau_b, overlaps, share, signs
from reward_models.intervals import Rate
from reward_models.records import Ranking, RankingTask

FOLLOWS = 0.5  # share of a judge's pairs by position beyond which it is of no use, in either order
LEANS = 0.6  # share of pairs won by the first or the longer response that is noteworthy
ENOUGH_PAIRS = 50

Counts = tuple[int, int]


def judge_rows(
    tasks: Sequence[RankingTask],
    people: Sequence[Ranking],
    judgements: Sequence[Ranking],
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Return the numbers of each judge, by name."""
    lengths = {task.id: {r.id: len(r.text.split()) for r in task.responses} for task in tasks}
    names = sorted({ranking.annotator for ranking in judgements})
    return [
        _row([one for one in judgements if one.annotator == name], people, lengths, rng)
        for name in names
    ]


def _row(
    own: Sequence[Ranking],
    people: Sequence[Ranking],
    lengths: Mapping[str, Mapping[str, int]],
    rng: np.random.Generator,
) -> dict[str, Any]:
    by_task = {ranking.task: ranking for ranking in own}
    same_tasks = [ranking for ranking in people if ranking.task in by_task]
    measured = [ranking for ranking in own if ranking.task in lengths]
    rates = {
        "agreement": agreement(_with_people(by_task, same_tasks), rng),
        "followed_position": share([_followed(ranking) for ranking in own], rng),
        "first_wins": share([_first_wins(ranking) for ranking in own], rng),
        "longer_wins": share([longer_wins(r, lengths[r.task]) for r in measured], rng),
        "longer_wins_for_people": share(
            [longer_wins(r, lengths[r.task]) for r in same_tasks if r.task in lengths], rng
        ),
    }
    return {
        "name": own[0].annotator,
        "model": own[0].extra.get("model"),
        "prompt_version": own[0].extra.get("prompt_version"),
        "num_rankings": len(own),
        "kappa": kappa([(by_task[one.task], one) for one in same_tasks]),
        "tau_b": mean_tau_b(_with_people(by_task, same_tasks)),
        "people": [
            _with_one(by_task, [one for one in same_tasks if one.annotator == name], rng)
            for name in sorted({ranking.annotator for ranking in same_tasks})
        ],
        "warnings": _warnings(rates),
        **{name: asdict(rate) for name, rate in rates.items()},
    }


def _with_people(by_task: Mapping[str, Ranking], people: Iterable[Ranking]) -> list[Any]:
    """Compare the judge with each person's ranking; people are not compared with each other."""
    return [overlap for ranking in people for overlap in overlaps([ranking, by_task[ranking.task]])]


def _with_one(
    by_task: Mapping[str, Ranking], person: Sequence[Ranking], rng: np.random.Generator
) -> dict[str, Any]:
    compared = _with_people(by_task, person)
    return {
        "name": person[0].annotator,
        "agreement": asdict(agreement(compared, rng)),
        "kappa": kappa([(by_task[one.task], one) for one in person]),
        "tau_b": mean_tau_b(compared),
    }


def kappa(pairs: Iterable[tuple[Ranking, Ranking]]) -> float | None:
    """Return Cohen's kappa over the pairs of responses of rankings of the same task."""
    total = alike = tied_one = tied_other = 0
    for one, other in pairs:
        names = sorted(one.ranks)
        one_P, other_P = (signs([ranking.ranks[n] for n in names]) for ranking in (one, other))
        total += len(one_P)
        alike += int((one_P == other_P).sum())
        tied_one += int((one_P == 0).sum())
        tied_other += int((other_P == 0).sum())
    if not total:
        return None
    t, u = tied_one / total, tied_other / total
    expected = t * u + (1 - t) * (1 - u) / 2
    return None if expected == 1 else (alike / total - expected) / (1 - expected)


def longer_wins(ranking: Ranking, words: Mapping[str, int]) -> Counts:
    """Return the pairs won by the response of more words, of the untied pairs that differ in it."""
    won = total = 0
    for better, worse in ranking.comparisons():
        if words[better] != words[worse]:
            won, total = won + (words[better] > words[worse]), total + 1
    return won, total


def _presentations(ranking: Ranking) -> list[tuple[list[str], Mapping[str, int]]]:
    """Return each order in which a judge got the responses, with the ranks that it gave."""
    return [(one["shown_order"], one["ranks"]) for one in ranking.extra.get("presentations", [])]


def _first_wins(ranking: Ranking) -> Counts:
    """Return the pairs won by the response that came first, over all presentations of a task."""
    parts = [signs([ranks[name] for name in order]) for order, ranks in _presentations(ranking)]
    sign_N = np.concatenate([np.zeros(0, np.int64), *parts])
    return int((sign_N > 0).sum()), int((sign_N != 0).sum())


def _followed(ranking: Ranking) -> Counts:
    """Return the pairs whose verdict swapping reversed, of those ordered in both orders."""
    both = _presentations(ranking)
    reversed_pairs = total = 0
    for (_, one), (_, other) in combinations(both, 2):
        names = sorted(one)
        product_P = signs([one[n] for n in names]) * signs([other[n] for n in names])
        reversed_pairs += int((product_P < 0).sum())
        total += int((product_P != 0).sum())
    return reversed_pairs, total


def _warnings(rates: Mapping[str, Rate]) -> list[str]:
    warnings = []
    followed, first = rates["followed_position"], rates["first_wins"]
    if _beyond(followed, FOLLOWS) or _beyond(first, LEANS):
        warnings.append(
            f"follows the position: swapping reversed {followed.value or 0:.0%} of its pairs, the "
            f"first response won {first.value or 0:.0%}"
        )
    longer, people = rates["longer_wins"], rates["longer_wins_for_people"]
    if _beyond(longer, max(LEANS, people.high or 0.0)):
        of_people = "" if people.value is None else f", for people {people.value:.0%}"
        warnings.append(f"prefers the longer response ({longer.value:.0%} of pairs{of_people})")
    return warnings


def _beyond(rate: Rate, mark: float) -> bool:
    return rate.low is not None and rate.num_pairs >= ENOUGH_PAIRS and rate.low > mark
