"""Rankings as Argilla's records with one ranking question; and back.

What Argilla has no place for rides along in the metadata, so that a round trip loses nothing.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from labeling_ui.exchange import NAMES, as_it_was, by_task
from reward_models.records import Ranking, RankingTask

Row = dict[str, Any]


def to_argilla(tasks: Sequence[RankingTask], rankings: Iterable[Ranking]) -> list[Row]:
    """Argilla records with one ranking question; ties share a rank, skips are discarded."""
    found = by_task(rankings)
    return [_argilla_record(task, found.get(task.id, [])) for task in tasks]


def _argilla_record(task: RankingTask, rankings: Sequence[Ranking]) -> Row:
    slots = {r.id: f"response_{i}" for i, r in enumerate(task.responses, 1)}
    responses = [
        {
            "user_id": str(uuid.uuid5(NAMES, ranking.annotator)),
            "status": "submitted" if ranking.skipped is None else "discarded",
            "value": [{"value": slots[i], "rank": rank} for i, rank in ranking.ranks.items()],
        }
        for ranking in rankings
    ]
    fields = {"prompt": task.prompt, "context": task.context or ""}
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
    """Tasks and rankings of Argilla records; those not made here become `imported`."""
    tasks, rankings = [], []
    for row in rows:
        slots = sorted(
            (name for name in row["fields"] if name.startswith("response_")),
            key=lambda name: int(name.split("_")[1]),
        )
        ours = row.get("metadata", {}).get("record")
        task = RankingTask.from_json(
            ours
            or {
                "id": str(row["id"]),
                "prompt": row["fields"]["prompt"],
                "context": row["fields"].get("context") or None,
                "responses": [{"id": slot, "text": row["fields"][slot]} for slot in slots],
            }
        )
        tasks.append(task)
        names = dict(zip(slots, (response.id for response in task.responses), strict=True))
        said = row.get("metadata", {}).get("rankings", [])
        for number, response in enumerate(row["responses"].get("ranking", [])):
            rest = said[number] if number < len(said) else None
            rankings.append(_from_argilla(task, names, response, rest))
    return tasks, rankings


def _from_argilla(
    task: RankingTask, names: Mapping[str, str], response: Row, rest: Row | None
) -> Ranking:
    given = {names[item["value"]]: item["rank"] for item in response["value"]}
    order = sorted(set(given.values()))
    ranks = {name: order.index(rank) + 1 for name, rank in given.items()}
    skipped = "discarded" if response["status"] == "discarded" else None
    head = {"task": task.id, "annotator": response["user_id"], "kind": "imported"}
    row = as_it_was(rest, ranks) if rest else {**head, "ranks": ranks, "skipped": skipped}
    ranking = Ranking.from_json(row)
    ranking.check_against(task)
    return ranking
