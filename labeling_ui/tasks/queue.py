"""The queue of one person: practice first, screening, then the mix of gold tasks and categories.

People who agree too little with known answers get no more tasks. Ouyang et al. 2022, appendix B.1,
chose labelers by their agreement with the researchers on flags of sensitive speech and on rankings,
with soft cut-offs at 75 %. Here a person's first tasks are gold tasks, and both shares are taken
over all of them.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

from sqlalchemy import Connection, Row

from labeling_ui.store.accounts import record_verdict, verdict_of
from labeling_ui.store.database import dumps, insert
from labeling_ui.store.leases import next_task
from labeling_ui.store.records import flag_answers
from labeling_ui.store.store import gold_answers


@dataclass(frozen=True, slots=True)
class Screening:
    """The number of gold tasks that come first, and the least shares of pairs and flags right."""

    tasks: int = 10
    comparisons: float = 0.75
    flags: float = 0.75


@dataclass(frozen=True, slots=True)
class Mixing:
    """The mix of tasks. `categories` are weights; those not named come last."""

    gold_share: float = 0.0
    categories: Mapping[str, float] | None = None
    screening: Screening | None = None
    practice: bool = False  # practice tasks come before all others


def choose(
    connection: Connection, annotator: str, now_s: float, mixing: Mixing, rng: random.Random
) -> Row[Any] | None:
    """Return the row of the task that comes next, by priority, then age; None if nothing is left.

    Practice comes before everything. Until a person has passed the screening, if there is one, they
    get only gold tasks.
    """
    if mixing.practice:
        lesson = next_task(connection, annotator, now_s, practice=True)
        if lesson is not None:
            return lesson
    if mixing.screening is not None:
        verdict = screen_when_done(connection, annotator, mixing.screening, now_s)
        if verdict is None:
            gold = next_task(connection, annotator, now_s, gold=True)
            if gold is not None:
                return gold
            verdict = screen(connection, annotator, mixing.screening, now_s)
        if verdict == "failed":
            return None
    category = None
    if mixing.categories:
        names = sorted(mixing.categories)
        (category,) = rng.choices(names, [mixing.categories[name] for name in names])
    task = None
    if rng.random() < mixing.gold_share:
        task = next_task(connection, annotator, now_s, gold=True)
    if task is None and category is not None:
        task = next_task(connection, annotator, now_s, category=category)
    return task or next_task(connection, annotator, now_s)


def screen_when_done(
    connection: Connection, annotator: str, screening: Screening, now_s: float
) -> str | None:
    """Return the verdict on a person, made now if they have answered enough gold; else None."""
    verdict = verdict_of(connection, annotator)
    if verdict is None and len(gold_answers(connection, annotator)) >= screening.tasks:
        return screen(connection, annotator, screening, now_s)
    return verdict


def screen(connection: Connection, annotator: str, screening: Screening, now_s: float) -> str:
    """Decide about a person by the gold tasks they have answered, and record the verdict.

    A person passes whose shares of pairs and flags right, where gold has any, are not too low.
    """
    pairs: list[float] = []
    flags: list[float] = []
    for row in gold_answers(connection, annotator):
        answer = json.loads(row.record)
        pairs += _pairs_right(answer["ranks"], json.loads(row.gold))
        flags += _flags_right(flag_answers(answer), json.loads(row.gold_flags or "{}"))
    least = {"comparisons": screening.comparisons, "flags": screening.flags}
    scores = {"comparisons": pairs, "flags": flags}
    shares = {name: fmean(values) if values else None for name, values in scores.items()}
    known = {name: share for name, share in shares.items() if share is not None}
    passed = known and all(share >= least[name] for name, share in known.items())
    verdict = "passed" if passed else "failed"
    record_verdict(connection, annotator, verdict, shares, now_s)
    event = {"time": now_s, "actor": annotator, "kind": f"screening {verdict}", "task": None}
    insert(connection, "events", {**event, "data": dumps(shares)})
    return verdict


def _pairs_right(ranks: Mapping[str, int], right: Mapping[str, int]) -> list[float]:
    """Score each pair that gold orders: 1 if ordered alike, a half if tied."""
    scores = []
    for a, b in combinations(sorted(right), 2):
        if right[a] != right[b]:
            product = (ranks[a] - ranks[b]) * (right[a] - right[b])
            scores.append(1.0 if product > 0 else 0.0 if product < 0 else 0.5)
    return scores


def _flags_right(
    given: Mapping[str, Mapping[str, bool]], right: Mapping[str, Mapping[str, bool]]
) -> list[float]:
    """Score each flag that gold answers: a flag left open is wrong."""
    return [
        float(given.get(response, {}).get(flag) is is_so)
        for response, known in right.items()
        for flag, is_so in known.items()
    ]
