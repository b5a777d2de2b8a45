"""Overlap that adapts: another person ranks a task only where that tells something.

One ranking is enough where the person and the models, judges and reward model, agree. A second
person ranks the task where they order too few of its pairs alike, or where the reward model's
scores lie too close to tell; a third where two people disagree. It is decided in the transaction of
the answer, so that a place is there or not when the next person asks.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

from sqlalchemy import Connection

from labeling_ui.reports.agreement import overlaps
from labeling_ui.reports.quality import Scores, matching_pairs
from labeling_ui.store.database import dumps, insert, run
from labeling_ui.store.store import Store
from reward_models.records import Ranking


@dataclass(frozen=True, slots=True)
class AdaptiveOverlap:
    """The rule: the most people a task, the least agreement over pairs and mean gap of scores."""

    most: int = 3
    agreement: float = 0.6
    margin: float = 0.0
    scores: Scores | None = None  # of a reward model, by task and response


def reason_for_more(
    people: Sequence[Ranking],
    judges: Sequence[Ranking],
    scores: Mapping[str, float] | None,
    rule: AdaptiveOverlap,
) -> str | None:
    """Return why another person should rank a task; None where the rankings are enough."""
    if not 0 < len(people) < rule.most:
        return None
    if len(people) > 1:
        compared = overlaps(people)
        same, strict = sum(one.same for one in compared), sum(one.strict for one in compared)
        return "people disagree" if _is_low(same, strict, rule) else None
    person = people[0]
    counts = [matching_pairs(person, judge.ranks) for judge in judges]
    if scores is not None:
        counts.append(matching_pairs(person, {name: -score for name, score in scores.items()}))
        gaps = [abs(a - b) for a, b in combinations(scores.values(), 2)]
        if fmean(gaps) < rule.margin:
            return "the reward model's margin is small"
    same, strict = (sum(values) for values in zip(*counts, strict=True)) if counts else (0, 0)
    return "a person and a model disagree" if _is_low(same, strict, rule) else None


def _is_low(same: int, strict: int, rule: AdaptiveOverlap) -> bool:
    return strict > 0 and same < rule.agreement * strict


def widen(connection: Connection, task: str, rule: AdaptiveOverlap, now_s: float) -> str | None:
    """Give a task a place for one more person where its answers call for it; return the reason.

    Gold tasks have places for everybody, and a task with a free place gets no other.
    """
    sql = """SELECT a.record, a.source, t.overlap FROM answers a JOIN tasks t ON t.id = a.task
             WHERE a.task = :task AND t.kind = 'ranking' AND t.gold IS NULL
             AND a.is_latest = 1 AND a.is_skip = 0 AND a.is_surplus = 0
             AND a.is_withdrawn = 0 ORDER BY a.id"""
    rows = run(connection, sql, task=task).all()
    people = [_ranking(row) for row in rows if row.source != "judge"]
    if not rows or rows[0].overlap > len(people):
        return None
    judges = [_ranking(row) for row in rows if row.source == "judge"]
    reason = reason_for_more(people, judges, (rule.scores or {}).get(task), rule)
    if reason is not None:
        sql = "UPDATE tasks SET overlap = :overlap, is_open = 1 WHERE id = :task"
        run(connection, sql, overlap=len(people) + 1, task=task)
        event = {"time": now_s, "actor": "store", "kind": "another ranking", "task": task}
        insert(connection, "events", {**event, "data": dumps({"reason": reason})})
    return reason


def widen_all(store: Store, rule: AdaptiveOverlap) -> int:
    """Widen every task that was answered before the rule held, or before a judge; count them."""
    tasks = {ranking.task for ranking in store.rankings()}
    with store.database.write() as connection:
        return sum(
            widen(connection, task, rule, store.clock()) is not None for task in sorted(tasks)
        )


def _ranking(row: Any) -> Ranking:
    return Ranking.from_json(json.loads(row.record))
