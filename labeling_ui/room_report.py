"""How well the labeling goes: agreement, each annotator against gold and the others, flags.

Numbers only; `owner.py` shows them. Rates that rest on tasks carry intervals over tasks.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np

from labeling_ui.agreement import (
    Overlap,
    Rate,
    agreement,
    alpha,
    flag_units,
    mean_tau_b,
    overlaps,
    rank_units,
    rating_units,
    share,
    signs,
)
from reward_models.records import Ranking, RankingTask

GoldRanks = Mapping[str, Mapping[str, int]]
FAST_S_PER_100_WORDS = 4.0  # nobody reads 1,500 words a minute
FOLLOWS_ORDER = 0.6  # share of pairs won by the one shown first, beyond which the order is followed
ENOUGH_PAIRS = 50
DISPUTED = 0.6  # a task whose annotators agree on less is shown for adjudication
SOFT_CUT_OFF = 0.75  # Ouyang et al. 2022, appendix B.1


@dataclass(frozen=True, slots=True)
class AnnotatorReport:
    """One annotator. `first_wins` is the share of pairs won by the response shown first."""

    name: str
    kind: str
    num_rankings: int
    seconds: float | None
    agreement: Rate
    gold: Rate
    tie_rate: float | None
    first_wins: Rate
    contradictions: float | None
    remarks: tuple[str, ...]


def report(
    tasks: Sequence[RankingTask],
    rankings: Sequence[Ranking],
    *,
    gold: GoldRanks,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Everything as one JSON object."""
    ranked = [ranking for ranking in rankings if ranking.skipped is None]
    found = overlaps(ranked)
    by_id = {task.id: task for task in tasks}
    flags = sorted({flag for r in ranked for chosen in r.flags.values() for flag in chosen})
    people = sorted({ranking.annotator for ranking in ranked})
    category = {task.id: task.category or "none" for task in tasks}
    day = {(r.task, r.annotator): (r.time or "")[:10] for r in ranked}
    return {
        "num_tasks": len(tasks),
        "num_rankings": len(ranked),
        "num_pairs": sum(1 for ranking in ranked for _ in ranking.comparisons()),
        "kinds": dict(Counter(ranking.kind for ranking in ranked)),
        "agreement": asdict(agreement(found, rng)),
        "tau_b": mean_tau_b(found),
        "alpha_ranks": alpha(rank_units(ranked), "ordinal"),
        "alpha_ratings": alpha(rating_units(ranked), "ordinal"),
        "ties": _tie_shares(found),
        "by_category": _split(found, lambda o: category.get(o.task, "none"), rng),
        "by_day": _split(found, lambda o: day[o.task, o.other], rng),
        "per_day": dict(sorted(Counter(day.values()).items())),
        "flags": [_flag(ranked, flag) for flag in flags],
        "positions": positions(ranked),
        "annotators": [asdict(_annotator(n, ranked, found, by_id, gold, rng)) for n in people],
        "disputed": disputed(found, by_id),
    }


def disputed(found: Sequence[Overlap], by_id: Mapping[str, RankingTask]) -> list[dict[str, Any]]:
    """The fifty tasks whose annotators agree least, worst first."""
    same: Counter[str] = Counter()
    strict: Counter[str] = Counter()
    for overlap in found:
        same[overlap.task] += overlap.same
        strict[overlap.task] += overlap.strict
    rows: list[dict[str, Any]] = [
        {"task": task, "agreement": same[task] / count, "prompt": by_id[task].prompt[:120]}
        for task, count in strict.items()
        if count and task in by_id and same[task] / count < DISPUTED
    ]
    return sorted(rows, key=lambda row: row["agreement"])[:50]


def positions(rankings: Sequence[Ranking]) -> list[dict[str, float]]:
    """The mean place (0 best, 1 worst) of the responses shown first, second, ..."""
    places: dict[int, list[float]] = {}
    for ranking in rankings:
        last = max(ranking.ranks.values()) - 1
        for shown, name in enumerate(ranking.shown_order or []):
            if last and name in ranking.ranks:
                places.setdefault(shown, []).append((ranking.ranks[name] - 1) / last)
    return [
        {"shown": shown + 1, "place": float(np.mean(values)), "num": len(values)}
        for shown, values in sorted(places.items())
    ]


def _split(
    found: Sequence[Overlap], key: Callable[[Overlap], str], rng: np.random.Generator
) -> dict[str, Any]:
    groups: dict[str, list[Overlap]] = {}
    for overlap in found:
        groups.setdefault(key(overlap), []).append(overlap)
    return {name: asdict(agreement(groups[name], rng)) for name in sorted(groups)}


def _tie_shares(found: Sequence[Overlap]) -> dict[str, float | None]:
    both = sum(overlap.both_tied for overlap in found)
    one = sum(overlap.one_tied for overlap in found)
    total = both + one + sum(overlap.strict for overlap in found)
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
    name: str,
    rankings: Sequence[Ranking],
    found: Sequence[Overlap],
    by_id: Mapping[str, RankingTask],
    gold: GoldRanks,
    rng: np.random.Generator,
) -> AnnotatorReport:
    mine = [ranking for ranking in rankings if ranking.annotator == name]
    seconds = [ranking.seconds for ranking in mine if ranking.seconds is not None]
    pairs = sum(len(r.ranks) * (len(r.ranks) - 1) // 2 for r in mine)
    strict = sum(1 for ranking in mine for _ in ranking.comparisons())
    against = [against_gold(r, gold[r.task]) for r in mine if r.task in gold]
    first = [_first_wins(ranking) for ranking in mine if ranking.shown_order]
    rates = {
        "agreement": agreement([o for o in found if name in (o.one, o.other)], rng),
        "gold": share([hits for hits, _ in against], [of for _, of in against], rng),
        "first_wins": share([hits for hits, _ in first], [of for _, of in first], rng),
    }
    return AnnotatorReport(
        name=name,
        kind=mine[0].kind,
        num_rankings=len(mine),
        seconds=median(seconds) if seconds else None,
        tie_rate=1 - strict / pairs if pairs else None,
        contradictions=_contradictions(mine),
        remarks=tuple(_remarks(mine, by_id, rates)),
        **rates,
    )


def against_gold(ranking: Ranking, right: Mapping[str, int]) -> tuple[int, int]:
    """(pairs ordered as gold orders them, pairs that both order)."""
    names = sorted(right)
    sign_P, right_P = signs([ranking.ranks[n] for n in names]), signs([right[n] for n in names])
    product_P = sign_P * right_P
    return int((product_P > 0).sum()), int((product_P != 0).sum())


def _first_wins(ranking: Ranking) -> tuple[int, int]:
    sign_P = signs([ranking.ranks[name] for name in ranking.shown_order or []])
    return int((sign_P > 0).sum()), int((sign_P != 0).sum())


def _contradictions(rankings: Sequence[Ranking]) -> float | None:
    """The share of strictly ordered pairs whose ratings say the opposite."""
    odd = both = 0
    for ranking in rankings:
        for a, b in combinations(ranking.ratings, 2):
            gap = (ranking.ratings[a] - ranking.ratings[b]) * (ranking.ranks[b] - ranking.ranks[a])
            odd, both = odd + (gap < 0), both + (gap != 0)
    return odd / both if both else None


def _remarks(
    rankings: Sequence[Ranking], by_id: Mapping[str, RankingTask], rates: Mapping[str, Rate]
) -> list[str]:
    """What an owner should look at; nothing of it blocks anybody."""
    remarks = []
    for name, what, wanted in (("agreement", "others", DISPUTED), ("gold", "gold", SOFT_CUT_OFF)):
        rate = rates[name]
        if rate.high is not None and rate.num_pairs >= ENOUGH_PAIRS and rate.high < wanted:
            remarks.append(f"agrees with {what} on {rate.value:.0%} of pairs, below {wanted:.0%}")
    first = rates["first_wins"]
    if first.low is not None and first.num_pairs >= ENOUGH_PAIRS and first.low > FOLLOWS_ORDER:
        remarks.append(f"follows the order shown ({first.value:.0%} of pairs)")
    fast = [r for r in rankings if r.seconds is not None and r.task in by_id and _is_fast(r, by_id)]
    if len(fast) > 5 and len(fast) > len(rankings) / 5:
        remarks.append(f"{len(fast)} rankings faster than one can read")
    tied = sum(len(set(ranking.ranks.values())) == 1 for ranking in rankings)
    if tied > 5 and tied > len(rankings) / 4:
        remarks.append(f"{tied} rankings tie everything")
    return remarks


def _is_fast(ranking: Ranking, by_id: Mapping[str, RankingTask]) -> bool:
    task = by_id[ranking.task]
    words = len(task.prompt.split()) + sum(len(r.text.split()) for r in task.responses)
    assert ranking.seconds is not None
    return ranking.seconds < FAST_S_PER_100_WORDS * words / 100
