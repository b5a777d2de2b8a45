"""Rankings as Label Studio's tasks, with the labeling interface that shows them; and back.

Label Studio holds less than a ranking of ours does; what it has no place for rides along in `meta`
and `data`, which it leaves alone, so that a round trip loses nothing.
"""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from labeling_ui.exchange import NAMES, as_it_was, by_task
from reward_models.records import Ranking, RankingTask

Row = dict[str, Any]
INTERFACE = """<View>
  <Text name="prompt" value="$prompt"/>
  <Text name="context" value="$context"/>
  <List name="items" value="$items"/>
  <Ranker name="rank" toName="items">
    {buckets}
  </Ranker>
</View>
""".format(buckets="\n    ".join(f'<Bucket name="{i}" title="{i}"/>' for i in range(1, 10)))


def write_label_studio(out: Path, rows: list[Row]) -> list[Path]:
    """One JSON list, as Label Studio imports it, and the labeling interface that fits it."""
    made = {"label_studio.json": json.dumps(rows, ensure_ascii=False), "interface.xml": INTERFACE}
    for name, text in made.items():
        aside = out / f"{name}.part"
        aside.write_text(text, encoding="utf-8")
        aside.replace(out / name)
    return [out / name for name in made]


def to_label_studio(tasks: Sequence[RankingTask], rankings: Iterable[Ranking]) -> list[Row]:
    """Label Studio tasks for `<List>` with a bucket `<Ranker>`: buckets are ranks, so ties stay."""
    found = by_task(rankings)
    people = sorted({r.annotator for given in found.values() for r in given})
    numbers = {name: number for number, name in enumerate(people, 1)}
    rows = []
    for number, task in enumerate(tasks, 1):
        record = task.to_json()
        items = [{"id": r.id, "title": "", "body": r.text} for r in task.responses]
        annotations = [_annotation(r, numbers[r.annotator]) for r in found.get(task.id, [])]
        data = {"prompt": task.prompt, "context": task.context or "", "items": items}
        rows.append({"id": number, "data": {**data, "record": record}, "annotations": annotations})
    return rows


def _annotation(ranking: Ranking, who: int) -> Row:
    result = {
        "id": str(uuid.uuid5(NAMES, f"{ranking.task}/{ranking.annotator}"))[:10],
        "from_name": "rank",
        "to_name": "items",
        "type": "ranker",
        "value": {"ranker": _buckets(ranking)},
        "meta": {"ranking": ranking.to_json()},
    }
    return {
        "completed_by": who,
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
        as_it_was(meta, ranks)
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
