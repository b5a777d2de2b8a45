"""Rankings as Label Studio's tasks, with the labeling interface that shows them; and back.

Label Studio holds less than a ranking of ours does; what it has no place for rides along in `meta`
and `data`, which it leaves alone, so that a round trip loses nothing.
"""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from labeling_ui.formats.round_trip import NAMES, by_task, one_each, updated_row
from reward_models.atomic_files import written_aside
from reward_models.records import Ranking, RankingTask
from reward_models.row_files import required_name

Row = dict[str, Any]
INTERFACE = """<View>
  <Paragraphs name="history" value="$history" layout="dialogue" nameKey="role" textKey="content"/>
  <Text name="prompt" value="$prompt"/>
  <Text name="context" value="$context"/>
  <List name="items" value="$items"/>
  <Ranker name="rank" toName="items">
    {buckets}
  </Ranker>
</View>
""".format(buckets="\n    ".join(f'<Bucket name="{i}" title="{i}"/>' for i in range(1, 10)))


def write_label_studio(out: Path, rows: list[Row]) -> list[Path]:
    """Write one JSON list, as Label Studio imports it, and the labeling interface that fits it."""
    files = {"label_studio.json": json.dumps(rows, ensure_ascii=False), "interface.xml": INTERFACE}
    for name, text in files.items():
        with written_aside(out / name) as aside:
            aside.write_text(text, encoding="utf-8")
    return [out / name for name in files]


def to_label_studio(tasks: Sequence[RankingTask], rankings: Iterable[Ranking]) -> list[Row]:
    """Return tasks for `<List>` with a bucket `<Ranker>`: buckets are ranks, so ties stay."""
    grouped = by_task(rankings)
    annotators = sorted({r.annotator for given in grouped.values() for r in given})
    numbers = {name: number for number, name in enumerate(annotators, 1)}
    rows = []
    for number, task in enumerate(tasks, 1):
        record = task.to_json()
        items = [{"id": r.id, "title": "", "body": r.text} for r in task.responses]
        annotations = [_annotation(r, numbers[r.annotator]) for r in grouped.get(task.id, [])]
        history = [turn.to_json() for turn in task.history]
        data = {"history": history, "prompt": task.prompt, "context": task.context or ""}
        data["items"] = items
        rows.append({"id": number, "data": {**data, "record": record}, "annotations": annotations})
    return rows


def _annotation(ranking: Ranking, user: int) -> Row:
    buckets: dict[str, list[str]] = {}
    for name, rank in sorted(ranking.ranks.items(), key=lambda item: item[1]):
        buckets.setdefault(str(rank), []).append(name)
    result = {
        "id": str(uuid.uuid5(NAMES, f"{ranking.task}/{ranking.annotator}"))[:10],
        "from_name": "rank",
        "to_name": "items",
        "type": "ranker",
        "value": {"ranker": buckets},
        "meta": {"ranking": ranking.to_json()},
    }
    return {
        "completed_by": user,
        "lead_time": ranking.seconds,
        "was_cancelled": ranking.skipped is not None,
        "created_at": ranking.time,
        "result": [result],
    }


def from_label_studio(rows: Iterable[Mapping[str, Any]]) -> tuple[list[RankingTask], list[Ranking]]:
    """Return tasks and rankings of a Label Studio export; those not made here become `imported`.

    Cancelled annotations are skips.
    """
    tasks, rankings = [], []
    for row in rows:
        data = row["data"]
        record = data.get("record") or {
            "id": row["id"],
            **_prompt(data),
            "context": data.get("context"),
            "responses": [{"id": item["id"], "text": item["body"]} for item in data["items"]],
        }
        task = RankingTask.from_json(record)
        tasks.append(task)
        made = [_from_annotation(task, one) for one in row.get("annotations") or []]
        rankings += one_each(made)
    return tasks, rankings


def _prompt(data: Mapping[str, Any]) -> Row:
    """Return the prompt, or the conversation that it ends."""
    if not data.get("history"):
        return {"prompt": data["prompt"]}
    return {"messages": [*data["history"], {"role": "user", "content": data["prompt"]}]}


def _from_annotation(task: RankingTask, annotation: Mapping[str, Any]) -> Ranking:
    results = [result for result in annotation["result"] if result["type"] == "ranker"]
    if len(results) > 1:
        raise ValueError(f"an annotation has {len(results)} rankings, expected one")
    ours = (results[0].get("meta") or {}).get("ranking") if results else None
    is_cancelled = bool(annotation.get("was_cancelled"))
    head = {
        "task": task.id,
        "annotator": None if ours else _annotator(annotation["completed_by"]),
        "kind": "imported",
        "seconds": annotation.get("lead_time"),
        "time": annotation.get("created_at"),
    }
    ranks = _ranks(results[0]["value"]["ranker"]) if results and not is_cancelled else {}
    row = updated_row(ours or head, ranks, "skipped" if is_cancelled else None)
    ranking = Ranking.from_json(row)
    ranking.check_against(task)
    return ranking


def _ranks(buckets: Mapping[str, Sequence[object]]) -> dict[str, int]:
    """Return ranks by item; the bucket `_` holds what is not ranked."""
    ranks: dict[str, int] = {}
    used = sorted((name for name in buckets if name != "_" and buckets[name]), key=int)
    for rank, name in enumerate(used, 1):
        for item in buckets[name]:
            if str(item) in ranks:
                raise ValueError("an item is in two buckets, expected one")
            ranks[str(item)] = rank
    return ranks


def _annotator(completed_by: object) -> str:
    """Return a name that is the annotator's alone: two people may share a first name."""
    if isinstance(completed_by, dict):
        known = completed_by.get("id")
        if known is None:
            return required_name("completed_by", completed_by.get("email"))
        completed_by = known
    return f"label-studio-{required_name('completed_by', completed_by)}"
