"""Rankings in the forms of others: TRL preference pairs, Label Studio, Argilla; and back.

Label Studio and Argilla hold less than a ranking of ours does; what they have no place for rides
along in fields they leave alone, so that a round trip loses nothing.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from labeling_ui.store import Store
from reward_models.records import Ranking, RankingTask, write_jsonl

Row = dict[str, Any]
Format = Literal["jsonl", "trl", "label-studio", "argilla", "audit"]
USERS = uuid.uuid5(uuid.NAMESPACE_URL, "instruct-rlhf/annotators")  # Argilla knows people by UUID


def write_export(store: Store, out: Path, form: Format) -> list[Path]:
    """Write all tasks and their latest rankings, or the log, to a folder; return the files."""
    tasks, rankings = store.tasks(), store.rankings(skipped=True)
    out.mkdir(parents=True, exist_ok=True)
    match form:
        case "jsonl":
            files: dict[str, Iterable[Row]] = {
                "tasks.jsonl": (task.to_json() for task in tasks),
                "rankings.jsonl": (ranking.to_json() for ranking in rankings),
            }
        case "audit":
            files = {"events.jsonl": (asdict(event) for event in store.events())}
        case "trl":
            files = {"preferences.jsonl": preference_pairs(tasks, rankings)}
        case "label-studio":
            files = {"label_studio.jsonl": to_label_studio(tasks, rankings)}
        case "argilla":
            files = {"argilla.jsonl": to_argilla(tasks, rankings)}
    for name, rows in files.items():
        write_jsonl(out / name, rows)
    return [out / name for name in files]


def preference_pairs(tasks: Sequence[RankingTask], rankings: Iterable[Ranking]) -> list[Row]:
    """One row for every untied pair, in TRL's explicit-prompt preference form.

    `margin` is the distance in ranks; a context passage stands before its prompt.
    """
    by_id = {task.id: task for task in tasks}
    rows = []
    for ranking in rankings:
        task = by_id[ranking.task]
        texts = {response.id: response.text for response in task.responses}
        prompt = task.prompt if task.context is None else f"{task.context}\n\n{task.prompt}"
        for better, worse in ranking.comparisons():
            rows.append(
                {
                    "prompt": prompt,
                    "chosen": texts[better],
                    "rejected": texts[worse],
                    "margin": ranking.ranks[worse] - ranking.ranks[better],
                    "task": task.id,
                    "annotator": ranking.annotator,
                    "kind": ranking.kind,
                }
            )
    return rows


def to_label_studio(tasks: Sequence[RankingTask], rankings: Iterable[Ranking]) -> list[Row]:
    """Label Studio tasks for `<List>` with a bucket `<Ranker>`: buckets are ranks, so ties stay."""
    by_task = _by_task(rankings)
    rows = []
    for number, task in enumerate(tasks, 1):
        record = task.to_json()
        items = [{"id": r.id, "title": "", "body": r.text} for r in task.responses]
        annotations = [_annotation(ranking) for ranking in by_task.get(task.id, [])]
        data = {"prompt": task.prompt, "context": task.context or "", "items": items}
        rows.append({"id": number, "data": {**data, "record": record}, "annotations": annotations})
    return rows


def _annotation(ranking: Ranking) -> Row:
    result = {
        "id": str(uuid.uuid5(USERS, f"{ranking.task}/{ranking.annotator}"))[:10],
        "from_name": "rank",
        "to_name": "items",
        "type": "ranker",
        "value": {"ranker": _buckets(ranking)},
        "meta": {"ranking": ranking.to_json()},
    }
    return {
        "completed_by": {"id": 0, "first_name": ranking.annotator, "email": ""},
        "lead_time": ranking.seconds,
        "was_cancelled": ranking.skipped is not None,
        "created_at": ranking.time,
        "result": [result],
    }


def _buckets(ranking: Ranking) -> dict[str, list[str]]:
    buckets: dict[str, list[str]] = {}
    for name, rank in sorted(ranking.ranks.items(), key=lambda item: item[1]):
        buckets.setdefault(str(rank), []).append(name)
    return buckets


def from_label_studio(rows: Iterable[Mapping[str, Any]]) -> tuple[list[RankingTask], list[Ranking]]:
    """Tasks and rankings of a Label Studio export; those not made here become `imported`."""
    tasks, rankings = [], []
    for row in rows:
        data = row["data"]
        record = data.get("record") or {
            "id": str(row["id"]),
            "prompt": data["prompt"],
            "context": data.get("context") or None,
            "responses": [{"id": item["id"], "text": item["body"]} for item in data["items"]],
        }
        task = RankingTask.from_json(record)
        tasks.append(task)
        rankings += [_from_annotation(task, annotation) for annotation in row["annotations"]]
    return tasks, rankings


def _from_annotation(task: RankingTask, annotation: Mapping[str, Any]) -> Ranking:
    results = [result for result in annotation["result"] if result["type"] == "ranker"]
    meta = results[0].get("meta", {}).get("ranking") if results else None
    ranks = {}
    if results and not annotation.get("was_cancelled"):
        buckets = results[0]["value"]["ranker"]
        order = sorted((name for name in buckets if name != "_"), key=int)
        ranks = {item: rank for rank, name in enumerate(order, 1) for item in buckets[name]}
    ranking = Ranking.from_json(
        _as_it_was(meta, ranks)
        if meta
        else {
            "task": task.id,
            "annotator": _who(annotation["completed_by"]),
            "kind": "imported",
            "ranks": ranks,
            "seconds": annotation.get("lead_time"),
            "time": annotation.get("created_at"),
            "skipped": "skipped" if annotation.get("was_cancelled") else None,
        }
    )
    ranking.check_against(task)
    return ranking


def _who(completed_by: object) -> str:
    if isinstance(completed_by, dict):
        return str(completed_by.get("first_name") or completed_by.get("email"))
    return f"label-studio-{completed_by}"


def to_argilla(tasks: Sequence[RankingTask], rankings: Iterable[Ranking]) -> list[Row]:
    """Argilla records with one ranking question; ties share a rank, skips are discarded."""
    by_task = _by_task(rankings)
    return [_argilla_record(task, by_task.get(task.id, [])) for task in tasks]


def _argilla_record(task: RankingTask, rankings: Sequence[Ranking]) -> Row:
    slots = {r.id: f"response_{i}" for i, r in enumerate(task.responses, 1)}
    responses = [
        {
            "user_id": str(uuid.uuid5(USERS, ranking.annotator)),
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
    row = _as_it_was(rest, ranks) if rest else {**head, "ranks": ranks, "skipped": skipped}
    ranking = Ranking.from_json(row)
    ranking.check_against(task)
    return ranking


def _as_it_was(ours: Row, ranks: Mapping[str, int]) -> Row:
    """Our own record with the ranks read back, in the order in which it held them."""
    order = [name for name in ours["ranks"] if name in ranks]
    return {**ours, "ranks": {name: ranks[name] for name in (*order, *ranks)}}


def _by_task(rankings: Iterable[Ranking]) -> dict[str, list[Ranking]]:
    grouped: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        grouped.setdefault(ranking.task, []).append(ranking)
    return grouped
