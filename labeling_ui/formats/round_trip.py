"""Round trips through Label Studio and Argilla: names that both can hold, and the way back."""

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from reward_models.records import Ranking

Row = dict[str, Any]
NAMES = uuid.uuid5(uuid.NAMESPACE_URL, "instruct-rlhf/annotators")  # both know things by UUID


def user_id(annotator: str) -> str:
    """Return the name of an annotator where people are known by UUID."""
    return str(uuid.uuid5(NAMES, annotator))


def updated_row(row: Mapping[str, Any], ranks: Mapping[str, int], skipped: str | None) -> Row:
    """Return a ranking's row with the ranks read back, in its own order.

    `skipped` is the reason of a row that is skipped now and gives none itself.
    """
    order = [name for name in row.get("ranks") or {} if name in ranks]
    reason = (row.get("skipped") or skipped) if skipped else None
    return {**row, "ranks": {name: ranks[name] for name in (*order, *ranks)}, "skipped": reason}


def one_each(rankings: Iterable[Ranking]) -> list[Ranking]:
    """Return one ranking of each annotator of a task; ValueError where one ranked it twice.

    A skip gives way to a ranking.
    """
    by_annotator: dict[str, Ranking] = {}
    for ranking in rankings:
        before = by_annotator.get(ranking.annotator)
        if before is not None and before.skipped is None and ranking.skipped is None:
            raise ValueError(f"'{ranking.annotator}' ranks task '{ranking.task}' twice")
        if before is None or before.skipped is not None:
            by_annotator[ranking.annotator] = ranking
    return list(by_annotator.values())


def by_task(rankings: Iterable[Ranking]) -> dict[str, list[Ranking]]:
    """Group rankings by task."""
    grouped: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        grouped.setdefault(ranking.task, []).append(ranking)
    return grouped
