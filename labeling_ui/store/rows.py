"""Records as rows of the tables, and what makes two stored answers the same."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from reward_models.records import Ranking, RankingTask


def answer_row(record: Mapping[str, Any], version: int, now_s: float) -> dict[str, Any]:
    """A ranking, or another answer with its keys, as a row of `answers`; unless it brought its own
    time it gets the present one.
    """
    timed = {"time": datetime.fromtimestamp(now_s, UTC).isoformat(), **record}
    return {
        "task": record["task"],
        "annotator": record["annotator"],
        "version": version,
        "source": record["kind"],
        "record": dumps(timed),
        "form": None,
        "is_latest": 1,
        "is_skip": int(record.get("skipped") is not None),
        "is_surplus": 0,
        "time": now_s,
    }


def says_the_same(one: str, other: str) -> bool:
    """Whether two stored answers differ at most in when they were given and how long they took."""

    def content(record: str) -> dict[str, Any]:
        row: dict[str, Any] = json.loads(record)
        return {name: row[name] for name in row if name not in ("time", "seconds", "shown_order")}

    return content(one) == content(other)


def check_gold(task: RankingTask, ranks: Mapping[str, int]) -> None:
    """Raise ValueError unless the known ranks name exactly the task's responses."""
    try:
        Ranking(task.id, "gold", "imported", ranks).check_against(task)
    except ValueError as error:
        raise ValueError(f"gold of task '{task.id}': {error}") from None


def dumps(row: Mapping[str, Any]) -> str:
    """JSON in ASCII, so that any text, NUL and lone surrogates included, fits both databases."""
    return json.dumps(row, allow_nan=False, default=dict)


def task_row(
    task: RankingTask, record: str, position: int, overlap: int, priority: int, gold: str | None
) -> dict[str, Any]:
    """A ranking task as a row of `tasks`."""
    row = {"id": task.id, "position": position, "kind": "ranking", "category": task.category}
    rest = {"overlap": overlap, "priority": priority, "gold": gold, "is_open": 1}
    return {**row, **rest, "record": record}


def submit_event(row: Mapping[str, Any]) -> dict[str, Any]:
    """The line of the log that tells of a row of `answers`."""
    kind = "skip" if row["is_skip"] else "submit" if row["version"] == 1 else "amend"
    data = {"version": row["version"], "source": row["source"], "surplus": bool(row["is_surplus"])}
    head = {"time": row["time"], "actor": row["annotator"], "kind": kind, "task": row["task"]}
    return {**head, "data": dumps(data)}
