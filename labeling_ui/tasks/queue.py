"""The queue of one person: screening first, then the mix of gold tasks and categories."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row

from labeling_ui.store.leases import next_task
from labeling_ui.tasks.screening import Screening, screen, screen_when_done


@dataclass(frozen=True, slots=True)
class Mixing:
    """The mix of tasks. `categories` are weights; those not named come last."""

    gold_share: float = 0.0
    categories: Mapping[str, float] | None = None
    screening: Screening | None = None


def choose(
    connection: Connection, annotator: str, now_s: float, mixing: Mixing, rng: random.Random
) -> Row[Any] | None:
    """Return the row of the task that comes next, by priority, then age; None if nothing is left.

    Until a person has passed the screening, if there is one, they get only gold tasks.
    """
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
