"""Screening: people who agree too little with known answers get no more tasks.

Ouyang et al. 2022, appendix B.1, chose labelers by their agreement with the researchers on flags of
sensitive speech and on rankings, with soft cut-offs at 75 %. Here a person's first tasks are gold
tasks, and both shares are taken over all of them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

from sqlalchemy import Connection

from labeling_ui.store.accounts import record_verdict, verdict_of
from labeling_ui.store.database import dumps, insert
from labeling_ui.store.store import gold_answers


@dataclass(frozen=True, slots=True)
class Screening:
    """The number of gold tasks that come first, and the least shares of pairs and flags right."""

    tasks: int = 10
    comparisons: float = 0.75
    flags: float = 0.75

    def __post_init__(self) -> None:
        if self.tasks < 1 or not (0 <= self.comparisons <= 1 and 0 <= self.flags <= 1):
            raise ValueError(
                f"screening has {self.tasks} tasks and shares of {self.comparisons} and "
                f"{self.flags}; expected at least 1 task and shares from 0 to 1"
            )


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares of gold's pairs and flags that a person got right; None where gold has none."""

    comparisons: float | None
    flags: float | None

    def pass_by(self, screening: Screening) -> bool:
        """Check that no share is below its least; a person without answers does not pass."""
        both = [(self.comparisons, screening.comparisons), (self.flags, screening.flags)]
        known = [(share, least) for share, least in both if share is not None]
        return bool(known) and all(share >= least for share, least in known)


def screen_when_done(
    connection: Connection, annotator: str, screening: Screening, now_s: float
) -> str | None:
    """Return the verdict on a person, made now if they have answered enough gold; else None."""
    verdict = verdict_of(connection, annotator)
    if verdict is None and len(gold_answers(connection, annotator)) >= screening.tasks:
        return screen(connection, annotator, screening, now_s)
    return verdict


def screen(connection: Connection, annotator: str, screening: Screening, now_s: float) -> str:
    """Decide about a person by the gold tasks they have answered, and record the verdict."""
    shares = _shares(gold_answers(connection, annotator))
    verdict = "passed" if shares.pass_by(screening) else "failed"
    record_verdict(connection, annotator, verdict, asdict(shares), now_s)
    event = {"time": now_s, "actor": annotator, "kind": f"screening {verdict}", "task": None}
    insert(connection, "events", {**event, "data": dumps(asdict(shares))})
    return verdict


def _shares(rows: Sequence[Any]) -> Shares:
    """Return the shares of pairs and flags that answers to gold tasks got right.

    A pair that gold orders and the person ties is half right; a flag that gold answers and the
    person left open is wrong.
    """
    pairs: list[float] = []
    flags: list[float] = []
    for row in rows:
        answer = json.loads(row.record)
        pairs += _pairs_right(answer["ranks"], json.loads(row.gold))
        flags += _flags_right(answer, json.loads(row.gold_flags or "{}"))
    return Shares(fmean(pairs) if pairs else None, fmean(flags) if flags else None)


def _pairs_right(ranks: Mapping[str, int], right: Mapping[str, int]) -> list[float]:
    scores = []
    for a, b in combinations(sorted(right), 2):
        if right[a] != right[b]:
            product = (ranks[a] - ranks[b]) * (right[a] - right[b])
            scores.append(1.0 if product > 0 else 0.0 if product < 0 else 0.5)
    return scores


def _flags_right(answer: Mapping[str, Any], right: Mapping[str, Mapping[str, bool]]) -> list[float]:
    yes, no = answer.get("flags", {}), answer.get("flags_no", {})
    return [
        float(flag in (yes if is_so else no).get(response, []))
        for response, known in right.items()
        for flag, is_so in known.items()
    ]
