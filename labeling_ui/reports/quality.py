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

from labeling_ui.reports.agreement import (
    Overlap,
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
from labeling_ui.reports.remarks import DISPUTED, remarks_on
from reward_models.intervals import Rate
from reward_models.records import Ranking, RankingTask

GoldRanks = Mapping[str, Mapping[str, int]]
Scores = Mapping[str, Mapping[str, float]]  # of a reward model, by task and response


@dataclass(frozen=True, slots=True)
class AnnotatorReport:
    """One annotator. `first_wins` is the share of pairs won by the response shown first, `model`
    the share that a reward model orders as they do.
    """

    name: str
    kind: str
    num_rankings: int
    seconds: float | None
    agreement: Rate
    gold: Rate
    model: Rate
    tie_rate: float | None
    first_wins: Rate
    contradictions: float | None
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """What annotators are held against."""

    by_id: Mapping[str, RankingTask]
    gold: GoldRanks
    scores: Scores


def report(
    tasks: Sequence[RankingTask],
    rankings: Sequence[Ranking],
    *,
    gold: GoldRanks,
    rng: np.random.Generator,
    scores: Scores | None = None,
) -> dict[str, Any]:
    """Everything as one JSON object. `scores` are a reward model's, where there is one."""
    ranked = [ranking for ranking in rankings if ranking.skipped is None]
    found = overlaps(ranked)
    known = Known({task.id: task for task in tasks}, gold, scores or {})
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
        "model": asdict(_model(ranked, known.scores, rng)),
        "annotators": [asdict(_annotator(n, ranked, found, known, rng)) for n in people],
        "disputed": disputed(found, known.by_id),
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
    known: Known,
    rng: np.random.Generator,
) -> AnnotatorReport:
    mine = [ranking for ranking in rankings if ranking.annotator == name]
    seconds = [ranking.seconds for ranking in mine if ranking.seconds is not None]
    pairs = sum(len(r.ranks) * (len(r.ranks) - 1) // 2 for r in mine)
    strict = sum(1 for ranking in mine for _ in ranking.comparisons())
    against = [against_gold(r, known.gold[r.task]) for r in mine if r.task in known.gold]
    first = [_first_wins(ranking) for ranking in mine if ranking.shown_order]
    rates = {
        "agreement": agreement([o for o in found if name in (o.one, o.other)], rng),
        "gold": share([hits for hits, _ in against], [of for _, of in against], rng),
        "model": _model(mine, known.scores, rng),
        "first_wins": share([hits for hits, _ in first], [of for _, of in first], rng),
    }
    return AnnotatorReport(
        name=name,
        kind=mine[0].kind,
        num_rankings=len(mine),
        seconds=median(seconds) if seconds else None,
        tie_rate=1 - strict / pairs if pairs else None,
        contradictions=_contradictions(mine),
        remarks=tuple(remarks_on(mine, known.by_id, rates)),
        **rates,
    )


def against_gold(ranking: Ranking, right: Mapping[str, int]) -> tuple[int, int]:
    """(pairs ordered as gold orders them, pairs that both order)."""
    names = sorted(right)
    sign_P, right_P = signs([ranking.ranks[n] for n in names]), signs([right[n] for n in names])
    product_P = sign_P * right_P
    return int((product_P > 0).sum()), int((product_P != 0).sum())


def _model(rankings: Sequence[Ranking], scores: Scores, rng: np.random.Generator) -> Rate:
    """How often the reward model orders the pairs as these rankings do: its accuracy on them."""
    ordered = [
        against_gold(ranking, _ranks_of(scores[ranking.task]))
        for ranking in rankings
        if ranking.task in scores
    ]
    return share([hits for hits, _ in ordered], [of for _, of in ordered], rng)


def _ranks_of(scores: Mapping[str, float]) -> dict[str, int]:
    """Rank 1 for the highest score; equal scores share one."""
    order = sorted(set(scores.values()), reverse=True)
    return {name: order.index(score) + 1 for name, score in scores.items()}


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
