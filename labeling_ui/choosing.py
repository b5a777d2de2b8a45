"""Which task a person gets next: screening first, then the mix of gold and categories."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, func, or_, select

from labeling_ui.screening import Screening, num_gold_done, screen, verdict_of
from labeling_ui.tables import leases, tasks


@dataclass(frozen=True, slots=True)
class Mixing:
    """What kind of task comes next. `categories` are weights; those not named come last."""

    gold_share: float = 0.0
    categories: Mapping[str, float] | None = None
    screening: Screening | None = None


def choose(
    connection: Connection, annotator: str, now_s: float, mixing: Mixing, rng: random.Random
) -> Row[Any] | None:
    """The task that comes next, by priority, then age; None if nothing is left for this person.

    Before they have passed the screening, if there is one, only gold tasks are.
    """
    new = _new(annotator)
    if mixing.screening is not None:
        verdict = screened(connection, annotator, mixing.screening, now_s)
        if verdict is None:
            gold = connection.execute(new.where(tasks.c.gold.is_not(None))).first()
            if gold is not None:
                return gold
            screen(connection, annotator, mixing.screening, now_s)
            verdict = verdict_of(connection, annotator)
        if verdict == "failed":
            return None
    wishes = _wishes(new, now_s, mixing, rng)
    found = (connection.execute(wish).first() for wish in wishes)
    return next((row for row in found if row is not None), None)


def screened(connection: Connection, annotator: str, wanted: Screening, now_s: float) -> str | None:
    """The verdict on a person, made now if they have answered enough gold; None before that."""
    verdict = verdict_of(connection, annotator)
    if verdict is None and num_gold_done(connection, annotator) >= wanted.tasks:
        screen(connection, annotator, wanted, now_s)
        verdict = verdict_of(connection, annotator)
    return verdict


def taken(now_s: float) -> Any:
    """What makes a lease take a place: it is answered, or it lives."""
    living = and_(leases.c.state == "held", leases.c.expires > now_s)
    return or_(leases.c.state == "done", living)


def _new(annotator: str) -> Select[Any]:
    """Open tasks that this person never had, the next one first."""
    seen = select(leases.c.task).where(leases.c.annotator == annotator)
    new = select(tasks).where(tasks.c.is_open == 1, tasks.c.id.not_in(seen))
    return new.order_by(tasks.c.priority.desc(), tasks.c.position).limit(1)


def _wishes(
    new: Select[Any], now_s: float, mixing: Mixing, rng: random.Random
) -> list[Select[Any]]:
    """What is asked for one after the other until something is found."""
    held = select(func.count()).where(leases.c.task == tasks.c.id, taken(now_s)).correlate(tasks)
    ordinary = new.where(tasks.c.gold.is_(None), held.scalar_subquery() < tasks.c.overlap)
    wishes = [ordinary]
    if mixing.categories:
        names = sorted(mixing.categories)
        (drawn,) = rng.choices(names, [mixing.categories[name] for name in names])
        wishes.insert(0, ordinary.where(tasks.c.category == drawn))
    if rng.random() < mixing.gold_share:
        wishes.insert(0, new.where(tasks.c.gold.is_not(None)))
    return wishes
