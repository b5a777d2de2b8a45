"""Quality of the labels: agreement, each annotator against gold and the others, flags.

Numbers only; the owner's page draws them. Rates that rest on tasks carry intervals over tasks.
Warnings are for an owner to look at; none of them blocks anybody.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np

from labeling_ui.reports.agreement import (
    Overlap,
    agreement,
    alpha,
    flag_units,
    mean_tau_b,
    overlaps,
    pairs_by_task,
    rank_units,
    rating_units,
    share,
    signs,
)
from labeling_ui.reports.drift import WINDOW, Drift, drift, windows
from labeling_ui.reports.judges import judge_rows
from reward_models.intervals import Rate
from reward_models.records import Ranking, RankingTask

FAST_S_PER_100_WORDS = 4.0  # nobody reads 1,500 words a minute
FOLLOWS_ORDER = 0.6  # share of pairs won by the one shown first, beyond which the order is followed
ENOUGH_PAIRS = 50
SOFT_CUT_OFF = 0.75  # Ouyang et al. 2022, appendix B.1
DISPUTED = 0.6  # a task whose annotators agree on less is shown for adjudication

GoldRanks = Mapping[str, Mapping[str, int]]
Practised = tuple[Ranking, Mapping[str, int]]
Scores = Mapping[str, Mapping[str, float]]  # of a reward model, by task and response


def report(
    tasks: Sequence[RankingTask],
    rankings: Sequence[Ranking],
    *,
    gold: GoldRanks,
    rng: np.random.Generator,
    scores: Scores | None = None,
    judgements: Sequence[Ranking] = (),
    practice: Sequence[Practised] = (),
) -> dict[str, Any]:
    """Return all numbers as one JSON object. `scores` are a reward model's, if there is one.

    `judgements` are judges' rankings: reported by themselves, and in no number about people.
    `practice` are first answers to practice tasks, beside the ranks known to be right.
    """
    ranked = [ranking for ranking in rankings if ranking.skipped is None]
    compared = overlaps(ranked)
    by_id = {task.id: task for task in tasks}
    flags = sorted({flag for r in ranked for chosen in r.flags.values() for flag in chosen})
    annotators = sorted({ranking.annotator for ranking in ranked})
    category = {task.id: task.category or "none" for task in tasks}
    day = {(r.task, r.annotator): (r.time or "")[:10] for r in ranked}
    return {
        "num_tasks": len(tasks),
        "num_rankings": len(ranked),
        "num_pairs": sum(1 for ranking in ranked for _ in ranking.comparisons()),
        "kinds": dict(Counter(ranking.kind for ranking in ranked)),
        "agreement": asdict(agreement(compared, rng)),
        "tau_b": mean_tau_b(compared),
        "alpha_ranks": alpha(rank_units(ranked), "ordinal"),
        "alpha_ratings": alpha(rating_units(ranked), "ordinal"),
        "ties": _tie_shares(compared),
        "by_category": _split(compared, lambda o: category.get(o.task, "none"), rng),
        "by_day": _split(compared, lambda o: day[o.task, o.other], rng),
        "per_day": dict(sorted(Counter(day.values()).items())),
        "flags": [_flag(ranked, flag) for flag in flags],
        "positions": positions(ranked),
        "model": asdict(_model(ranked, scores or {}, rng)),
        "annotators": [
            _annotator(
                [ranking for ranking in ranked if ranking.annotator == name],
                [overlap for overlap in compared if name in (overlap.one, overlap.other)],
                by_id,
                gold,
                scores or {},
                rng,
                [one for one in practice if one[0].annotator == name],
            )
            for name in annotators
        ],
        "disputed": disputed(compared, by_id),
        "judges": judge_rows(tasks, ranked, judgements, rng),
    }


def disputed(compared: Sequence[Overlap], by_id: Mapping[str, RankingTask]) -> list[dict[str, Any]]:
    """Return the fifty tasks whose annotators agree least, worst first."""
    rows: list[dict[str, Any]] = [
        {"task": task, "agreement": same / strict, "prompt": by_id[task].prompt[:120]}
        for task, (same, strict) in pairs_by_task(compared).items()
        if strict and task in by_id and same / strict < DISPUTED
    ]
    return sorted(rows, key=lambda row: row["agreement"])[:50]


def positions(rankings: Sequence[Ranking]) -> list[dict[str, float]]:
    """Return the mean rank (0 best, 1 worst) of the responses shown first, second, ..."""
    ranks: dict[int, list[float]] = {}
    for ranking in rankings:
        last = max(ranking.ranks.values()) - 1
        for position, name in enumerate(ranking.shown_order or []):
            if last and name in ranking.ranks:
                ranks.setdefault(position, []).append((ranking.ranks[name] - 1) / last)
    return [
        {"position": position + 1, "rank": float(np.mean(values)), "num": len(values)}
        for position, values in sorted(ranks.items())
    ]


def _split(
    compared: Sequence[Overlap], key: Callable[[Overlap], str], rng: np.random.Generator
) -> dict[str, Any]:
    groups: dict[str, list[Overlap]] = {}
    for overlap in compared:
        groups.setdefault(key(overlap), []).append(overlap)
    return {name: asdict(agreement(groups[name], rng)) for name in sorted(groups)}


def _tie_shares(compared: Sequence[Overlap]) -> dict[str, float | None]:
    both = sum(overlap.both_tied for overlap in compared)
    one = sum(overlap.one_tied for overlap in compared)
    total = both + one + sum(overlap.strict for overlap in compared)
    return {"both": both / total if total else None, "one": one / total if total else None}


def _flag(rankings: Sequence[Ranking], flag: str) -> dict[str, Any]:
    units = flag_units(rankings, flag)
    values = [value for unit in units for value in unit.values()]
    outputs = sum(len(ranking.ranks) for ranking in rankings)
    return {
        "flag": flag,
        "yes": int(sum(values)),
        "no": len(values) - int(sum(values)),
        "unanswered": outputs - len(values),
        "alpha": alpha(units, "nominal"),
    }


def _annotator(
    own: Sequence[Ranking],
    compared: Sequence[Overlap],
    by_id: Mapping[str, RankingTask],
    gold: GoldRanks,
    scores: Scores,
    rng: np.random.Generator,
    practice: Sequence[Practised],
) -> dict[str, Any]:
    """Return the numbers of one annotator.

    `first_wins` is the share of pairs won by the response shown first, `model` the share that a
    reward model orders as they do.
    """
    seconds = [ranking.seconds for ranking in own if ranking.seconds is not None]
    pairs = sum(len(r.ranks) * (len(r.ranks) - 1) // 2 for r in own)
    strict = sum(1 for ranking in own for _ in ranking.comparisons())
    rates = {
        "agreement": agreement(compared, rng),
        "gold": share([matching_pairs(r, gold[r.task]) for r in own if r.task in gold], rng),
        "model": _model(own, scores, rng),
        "first_wins": share([_first_wins(ranking) for ranking in own if ranking.shown_order], rng),
        "practice": share([matching_pairs(ranking, right) for ranking, right in practice], rng),
    }
    by_day = [
        ((ranking.time or "")[:10], matching_pairs(ranking, gold[ranking.task]))
        for ranking in sorted(own, key=lambda ranking: ranking.time or "")
        if ranking.task in gold
    ]
    change = drift([counts for _, counts in by_day], rng)
    return {
        "name": own[0].annotator,
        "kind": own[0].kind,
        "num_rankings": len(own),
        "seconds": median(seconds) if seconds else None,
        "tie_rate": 1 - strict / pairs if pairs else None,
        "contradictions": _contradictions(own),
        "gold_over_time": windows(by_day, rng),
        "warnings": [*_warnings(own, by_id, rates), *_drift_warning(change)],
        **{name: asdict(rate) for name, rate in rates.items()},
    }


def matching_pairs(ranking: Ranking, right: Mapping[str, float]) -> tuple[int, int]:
    """Return the pairs ordered as these ranks order them, and the pairs that both order."""
    names = sorted(right)
    sign_P, right_P = signs([ranking.ranks[n] for n in names]), signs([right[n] for n in names])
    product_P = sign_P * right_P
    return int((product_P > 0).sum()), int((product_P != 0).sum())


def _model(rankings: Sequence[Ranking], scores: Scores, rng: np.random.Generator) -> Rate:
    """Return the reward model's accuracy on the pairs of these rankings."""
    descending = {
        task: {name: -score for name, score in by_response.items()}
        for task, by_response in scores.items()
    }
    return share([matching_pairs(r, descending[r.task]) for r in rankings if r.task in scores], rng)


def _first_wins(ranking: Ranking) -> tuple[int, int]:
    sign_P = signs([ranking.ranks[name] for name in ranking.shown_order or []])
    return int((sign_P > 0).sum()), int((sign_P != 0).sum())


def _contradictions(rankings: Sequence[Ranking]) -> float | None:
    """Return the share of strictly ordered pairs that the ratings order the other way."""
    odd = both = 0
    for ranking in rankings:
        for a, b in combinations(ranking.ratings, 2):
            gap = (ranking.ratings[a] - ranking.ratings[b]) * (ranking.ranks[b] - ranking.ranks[a])
            odd, both = odd + (gap < 0), both + (gap != 0)
    return odd / both if both else None


def _warnings(
    rankings: Sequence[Ranking], by_id: Mapping[str, RankingTask], rates: Mapping[str, Rate]
) -> list[str]:
    warnings = []
    for name, other, least in (("agreement", "others", DISPUTED), ("gold", "gold", SOFT_CUT_OFF)):
        rate = rates[name]
        if rate.high is not None and rate.num_pairs >= ENOUGH_PAIRS and rate.high < least:
            warnings.append(f"agrees with {other} on {rate.value:.0%} of pairs, below {least:.0%}")
    first = rates["first_wins"]
    if first.low is not None and first.num_pairs >= ENOUGH_PAIRS and first.low > FOLLOWS_ORDER:
        warnings.append(f"follows the order shown ({first.value:.0%} of pairs)")
    num_fast = sum(_is_fast(r, by_id[r.task]) for r in rankings if r.task in by_id)
    if num_fast > 5 and num_fast > len(rankings) / 5:
        warnings.append(f"{num_fast} rankings faster than one can read")
    num_tied = sum(len(set(ranking.ranks.values())) == 1 for ranking in rankings)
    if num_tied > 5 and num_tied > len(rankings) / 4:
        warnings.append(f"{num_tied} rankings tie everything")
    return warnings


def _drift_warning(change: Drift | None) -> list[str]:
    if change is None or not change.is_fall:
        return []
    return [
        f"agrees with gold on {change.latest:.0%} of pairs of the latest {WINDOW} gold tasks, "
        f"{change.before:.0%} before"
    ]


def _is_fast(ranking: Ranking, task: RankingTask) -> bool:
    words = len(task.prompt.split()) + sum(len(r.text.split()) for r in task.responses)
    limit_s = FAST_S_PER_100_WORDS * words / 100
    return ranking.seconds is not None and ranking.seconds < limit_s
