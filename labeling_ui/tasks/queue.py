"""Which task a person gets next: screening first, then the mix of gold and categories."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select

from labeling_ui.store.statements import NEXT, NEXT_GOLD, NEXT_OF_CATEGORY
from labeling_ui.tasks.screening import Screening, num_gold_done, screen, verdict_of


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
    if mixing.screening is not None:
        verdict = screened(connection, annotator, mixing.screening, now_s)
        if verdict is None:
            gold = connection.execute(NEXT_GOLD, {"annotator": annotator}).first()
            if gold is not None:
                return gold
            screen(connection, annotator, mixing.screening, now_s)
            verdict = verdict_of(connection, annotator)
        if verdict == "failed":
            return None
    known = {"annotator": annotator, "now": now_s}
    wishes: list[tuple[Select[Any], dict[str, Any]]] = [(NEXT, known)]
    if mixing.categories:
        names = sorted(mixing.categories)
        (drawn,) = rng.choices(names, [mixing.categories[name] for name in names])
        wishes.insert(0, (NEXT_OF_CATEGORY, {**known, "category": drawn}))
    if rng.random() < mixing.gold_share:
        wishes.insert(0, (NEXT_GOLD, {"annotator": annotator}))
    found = (connection.execute(wish, asked).first() for wish, asked in wishes)
    return next((row for row in found if row is not None), None)


def screened(connection: Connection, annotator: str, wanted: Screening, now_s: float) -> str | None:
    """The verdict on a person, made now if they have answered enough gold; None before that."""
    verdict = verdict_of(connection, annotator)
    if verdict is None and num_gold_done(connection, annotator) >= wanted.tasks:
        screen(connection, annotator, wanted, now_s)
        verdict = verdict_of(connection, annotator)
    return verdict
