"""Rankings as Argilla's records with one ranking question; and back.

What Argilla has no place for rides along in the metadata, so that a round trip loses nothing.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from labeling_ui.formats.round_trip import by_task, one_each, updated_row, user_id
from reward_models.conversations import Turn
from reward_models.records import Ranking, RankingTask

Row = dict[str, Any]
_SLOT = re.compile(r"response_\d+")
_UNFINISHED = ("draft", "pending")


def to_argilla(tasks: Sequence[RankingTask], rankings: Iterable[Ranking]) -> list[Row]:
    """Return Argilla records with one ranking question; ties share a rank, skips are discarded.

    Prompts are chat fields where any of them has earlier turns.
    """
    grouped = by_task(rankings)
    is_chat = any(task.history for task in tasks)
    return [_argilla_record(task, grouped.get(task.id, []), is_chat=is_chat) for task in tasks]


def _argilla_record(task: RankingTask, rankings: Sequence[Ranking], *, is_chat: bool) -> Row:
    slots = {r.id: f"response_{i}" for i, r in enumerate(task.responses, 1)}
    responses = [
        {
            "user_id": user_id(ranking.annotator),
            "status": "submitted" if ranking.skipped is None else "discarded",
            "value": [{"value": slots[i], "rank": rank} for i, rank in ranking.ranks.items()],
        }
        for ranking in rankings
    ]
    turns = [turn.to_json() for turn in (*task.history, Turn("user", task.prompt))]
    fields = {"prompt": turns if is_chat else task.prompt, "context": task.context or ""}
    return {
        "id": task.id,
        "fields": {**fields, **{slots[r.id]: r.text for r in task.responses}},
        "responses": {"ranking": responses},
        "metadata": {
            "record": task.to_json(),
            "rankings": [ranking.to_json() for ranking in rankings],
        },
    }


def from_argilla(rows: Iterable[Mapping[str, Any]]) -> tuple[list[RankingTask], list[Ranking]]:
    """Return the tasks and rankings of Argilla records; those not made here become `imported`.

    Responses are matched with annotators by user id. Drafts are no answers; discarded ones are
    skips.
    """
    tasks, rankings = [], []
    for row in rows:
        fields, metadata = row["fields"], row.get("metadata") or {}
        slots = sorted(filter(_SLOT.fullmatch, fields), key=lambda name: int(name.split("_")[1]))
        task = RankingTask.from_json(
            metadata.get("record")
            or {
                "id": row["id"],
                "prompt": fields["prompt"],
                "context": fields.get("context"),
                "responses": [{"id": slot, "text": fields[slot]} for slot in slots],
            }
        )
        if len(slots) != len(task.responses):
            raise ValueError(f"{len(slots)} responses in the fields, {len(task.responses)} before")
        tasks.append(task)
        names = dict(zip(slots, (response.id for response in task.responses), strict=True))
        ours = {user_id(one["annotator"]): one for one in metadata.get("rankings") or []}
        made = [
            _from_argilla(task, names, response, ours.get(response["user_id"]))
            for response in (row.get("responses") or {}).get("ranking") or []
            if response["status"] not in _UNFINISHED
        ]
        rankings += one_each(made)
    return tasks, rankings


def _from_argilla(
    task: RankingTask, names: Mapping[str, str], response: Row, ours: Row | None
) -> Ranking:
    if response["status"] not in ("submitted", "discarded"):
        raise ValueError(f"status is {response['status']!r}, expected submitted or discarded")
    skipped = response["status"] == "discarded"
    value = [] if skipped and ours is None else response.get("value") or []
    order = {names[item["value"]]: item["rank"] for item in value}
    if len(order) != len(value):
        raise ValueError(f"a response is ranked twice by '{response['user_id']}'")
    levels = sorted(set(order.values()))
    ranks = {name: levels.index(rank) + 1 for name, rank in order.items()}
    head = {"task": task.id, "annotator": response["user_id"], "kind": "imported"}
    reason = "discarded" if skipped else None
    ranking = Ranking.from_json(updated_row(ours or head, ranks, reason))
    ranking.check_against(task)
    return ranking
