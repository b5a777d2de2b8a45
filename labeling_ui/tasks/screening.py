"""Screening: who agrees too little with known answers is handed out nothing more.

Ouyang et al. 2022, appendix B.1, chose labelers by their agreement with the researchers on flags of
sensitive speech and on rankings, with soft cut-offs at 75 %. Here a person's first tasks are gold
tasks, and both shares are taken over all of them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from labeling_ui.store.rows import dumps
from labeling_ui.store.tables import answers, events, screenings, tasks


@dataclass(frozen=True, slots=True)
class Screening:
    """How many gold tasks come first, and the least share of pairs and of flags to get right."""

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
    """Shares of the pairs and flags told by gold that a person got right; None: it tells none."""

    comparisons: float | None
    flags: float | None

    def pass_by(self, wanted: Screening) -> bool:
        """Whether neither share is below what is wanted; who answered nothing does not pass."""
        told = [(self.comparisons, wanted.comparisons), (self.flags, wanted.flags)]
        known = [(share, least) for share, least in told if share is not None]
        return bool(known) and all(share >= least for share, least in known)


def verdict_of(connection: Connection, annotator: str) -> str | None:
    """'passed', 'failed' or 'admitted'; None before the screening is done."""
    query = select(screenings.c.verdict).where(screenings.c.annotator == annotator)
    found: str | None = connection.execute(query).scalar()
    return found


def verdicts(connection: Connection) -> dict[str, str]:
    """All verdicts by annotator."""
    rows = connection.execute(select(screenings.c.annotator, screenings.c.verdict))
    return {row.annotator: row.verdict for row in rows}


def record_verdict(
    connection: Connection, annotator: str, verdict: str, data: Mapping[str, Any], now_s: float
) -> None:
    """Write a verdict in place of an earlier one."""
    connection.execute(delete(screenings).where(screenings.c.annotator == annotator))
    row = {"annotator": annotator, "verdict": verdict, "data": dumps(data), "time": now_s}
    connection.execute(insert(screenings).values(**row))


def num_gold_done(connection: Connection, annotator: str) -> int:
    """How many gold tasks a person has answered, skips left out."""
    query = select(func.count()).select_from(answers).join(tasks, tasks.c.id == answers.c.task)
    return int(connection.execute(query.where(_counted(annotator))).scalar_one())


def shares_right(connection: Connection, annotator: str) -> Shares:
    """How much of what gold tells a person got right.

    A pair that gold orders and the person ties is half right; a flag that gold answers and the
    person left open is wrong.
    """
    query = select(answers.c.record, tasks.c.gold, tasks.c.gold_flags)
    query = query.join(tasks, tasks.c.id == answers.c.task).where(_counted(annotator))
    pairs: list[float] = []
    flags: list[float] = []
    for row in connection.execute(query):
        given = json.loads(row.record)
        pairs += _pairs_right(given["ranks"], json.loads(row.gold))
        flags += _flags_right(given, json.loads(row.gold_flags or "{}"))
    return Shares(_mean(pairs), _mean(flags))


def screen(connection: Connection, annotator: str, wanted: Screening, now_s: float) -> Shares:
    """Decide about a person by the gold tasks they have answered, and write it down."""
    shares = shares_right(connection, annotator)
    verdict = "passed" if shares.pass_by(wanted) else "failed"
    record_verdict(connection, annotator, verdict, asdict(shares), now_s)
    head = {"time": now_s, "actor": annotator, "kind": f"screening {verdict}", "task": None}
    connection.execute(insert(events).values(**head, data=dumps(asdict(shares))))
    return shares


def _counted(annotator: str) -> Any:
    return (
        (answers.c.annotator == annotator)
        & (answers.c.is_latest == 1)
        & (answers.c.is_skip == 0)
        & tasks.c.gold.is_not(None)
    )


def _pairs_right(ranks: Mapping[str, int], right: Mapping[str, int]) -> list[float]:
    found = []
    for a, b in combinations(sorted(right), 2):
        if right[a] != right[b]:
            product = (ranks[a] - ranks[b]) * (right[a] - right[b])
            found.append(1.0 if product > 0 else 0.0 if product < 0 else 0.5)
    return found


def _flags_right(given: Mapping[str, Any], right: Mapping[str, Mapping[str, bool]]) -> list[float]:
    yes, no = given.get("flags", {}), given.get("flags_no", {})
    return [
        float(flag in (yes if is_so else no).get(response, []))
        for response, known in right.items()
        for flag, is_so in known.items()
    ]


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
