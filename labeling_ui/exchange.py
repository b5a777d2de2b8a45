"""What the forms of Label Studio and Argilla share: names that they can hold, and the way back."""

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from reward_models.records import Ranking

NAMES = uuid.uuid5(uuid.NAMESPACE_URL, "instruct-rlhf/annotators")  # both know things by UUID


def as_it_was(ours: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, Any]:
    """Our own record with the ranks read back, in the order in which it held them."""
    order = [name for name in ours["ranks"] if name in ranks]
    return {**ours, "ranks": {name: ranks[name] for name in (*order, *ranks)}}


def by_task(rankings: Iterable[Ranking]) -> dict[str, list[Ranking]]:
    """The rankings of each task."""
    grouped: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        grouped.setdefault(ranking.task, []).append(ranking)
    return grouped
