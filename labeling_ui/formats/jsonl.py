"""JSON lines: tasks, rankings and all other answers, in files that the pipeline reads as they are.

tasks.jsonl, rankings.jsonl   ranking tasks and everybody's latest ranking
judge_rankings.jsonl          the same by models, never among people's
demonstrations.jsonl          stage one's data
prompts.jsonl                 prompts to sample from
ratings.jsonl                 samples with people's ratings as columns; `rlhf score` reads them
comparisons/                  pairs of two policies' outputs, and who preferred which
adjudications.jsonl           rankings that settle a disagreement
conversations.jsonl           live conversations: each turn's best output, as stage one reads them

Of a few-shot prompt with N pairs come N demonstrations, each asking for one pair's response with
the others before it (Ouyang et al. 2022, appendix A.2).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from labeling_ui.forms import TaskKind
from labeling_ui.store.records import TextTask, WritingTask
from labeling_ui.store.store import Store
from labeling_ui.tasks.adjudication import adjudications
from reward_models.atomic_files import write_jsonl
from reward_models.records import (
    Demonstration,
    Prompt,
    Ranking,
    RankingTask,
    read_rankings,
    read_tasks,
)

SOURCE = "labeling room"
JUDGED = "judge_rankings.jsonl"
Row = dict[str, Any]


def write_jsonl_files(store: Store, out: Path) -> list[Path]:
    """Write tasks and rankings, and a file for each other kind of answer; return the files."""
    compared, preferred = comparisons(store)
    files = {
        "tasks.jsonl": [task.to_json() for task in store.tasks()],
        "rankings.jsonl": [ranking.to_json() for ranking in store.rankings(skipped=True)],
    }
    others = {
        JUDGED: [ranking.to_json() for ranking in store.rankings(use="judges")],
        "demonstrations.jsonl": [one.to_json() for one in demonstrations(store)],
        "prompts.jsonl": [one.to_json() for one in prompts(store)],
        "conversations.jsonl": [one.to_json() for one in conversations(store)],
        "ratings.jsonl": ratings(store),
        "comparisons/tasks.jsonl": [one.to_json() for one in compared],
        "comparisons/rankings.jsonl": [one.to_json() for one in preferred],
        "adjudications.jsonl": [one.to_json() for one in adjudications(store)],
    }
    files |= {name: rows for name, rows in others.items() if rows}
    for name, rows in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(out / name, rows)
    return [out / name for name in files]


def read_jsonl_files(path: Path) -> tuple[list[RankingTask], list[Ranking]]:
    """Read a file of tasks, or a folder with tasks.jsonl and perhaps rankings, judges' included."""
    if path.is_file():
        return read_tasks(path), []
    tasks = read_tasks(path / "tasks.jsonl")
    files = [path / name for name in ("rankings.jsonl", JUDGED)]
    rankings = [read_rankings(file, tasks) for file in files if file.is_file()]
    return tasks, [ranking for part in rankings for ranking in part]


def demonstrations(store: Store) -> list[Demonstration]:
    """Return all demonstrations written in the room, as stage one reads them."""
    return [
        Demonstration(
            prompt,
            response,
            id=name,
            user=annotator,
            source=SOURCE,
            context=task.context,
            category=task.category,
            history=task.history,
            extra={"shape": task.shape},
        )
        for task, annotator, name, prompt, response in _written(store, "demonstration")
    ]


def prompts(store: Store) -> list[Prompt]:
    """Return all prompts written in the room, alone or with demonstrations."""
    return [
        Prompt(prompt, name, annotator, task.context, task.category, history=task.history)
        for kind in ("prompt", "demonstration")
        for task, annotator, name, prompt, _ in _written(store, kind)
    ]


def conversations(store: Store) -> list[Demonstration]:
    """Return every ranked turn of live conversations with the output that was chosen.

    That is the one the conversation went on after, else the first shown of those ranked best.
    """
    tasks = {task.id: task for task in store.tasks() if "turn" in task.extra}
    chosen = {
        task.extra["continues"]: task.extra["chosen"]
        for task in tasks.values()
        if "continues" in task.extra
    }
    rows = []
    for ranking in store.rankings():
        task = tasks.get(ranking.task)
        if task is None or ranking.annotator != task.extra["asked_by"]:
            continue
        order = ranking.shown_order or list(ranking.ranks)
        best = chosen.get(task.id) or next(name for name in order if ranking.ranks[name] == 1)
        (response,) = [one for one in task.responses if one.id == best]
        if not response.text.strip():
            continue
        names = {"conversation": task.extra["conversation"], "turn": task.extra["turn"]}
        rows.append(
            Demonstration(
                task.prompt,
                response.text,
                id=task.id,
                user=ranking.annotator,
                source=SOURCE,
                history=task.history,
                extra={**names, "model": response.model},
            )
        )
    return rows


def _written(store: Store, kind: TaskKind) -> Iterator[tuple[WritingTask, str, str, str, str]]:
    """Yield task, annotator, id, prompt and response of everything written of a kind."""
    for task, row in store.answers(kind):
        assert isinstance(task, WritingTask)
        for i, (prompt, response) in enumerate(_prompts_of(task, row)):
            yield task, row["annotator"], f"{task.id}/{row['annotator']}/{i}", prompt, response


def _prompts_of(task: WritingTask, row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the prompts that one answer makes, each with its response."""
    if task.shape != "few-shot":
        yield task.prompt or row["prompt"], row.get("response", "")
        return
    pairs = row["pairs"]
    for i, pair in enumerate(pairs):
        examples = [
            f"Input: {one['query']}\nOutput: {one['response']}"
            for j, one in enumerate(pairs)
            if j != i
        ]
        parts = [row["instruction"], *examples, f"Input: {pair['query']}\nOutput:"]
        yield "\n\n".join(parts), pair["response"]


def ratings(store: Store) -> list[Row]:
    """Return one row for each text and annotator, with every scale under its own name."""
    rows = []
    for task, row in store.answers("rating"):
        assert isinstance(task, TextTask)
        prompt = Prompt(task.prompt, history=task.history).to_json() if task.prompt else None
        head = {"id": task.id, **(prompt or {"prompt": ""}), "model": task.model or "unknown"}
        scales = {"quality": row.get("rating"), **row.get("scales", {})}
        yes = dict.fromkeys(row.get("flags", []), 1)
        no = dict.fromkeys(row.get("flags_no", []), 0)
        values = {name: value for name, value in scales.items() if value is not None}
        rows.append(
            {**head, "completion": task.text, **values, **yes, **no, "annotator": row["annotator"]}
        )
    return rows


def comparisons(store: Store) -> tuple[list[RankingTask], list[Ranking]]:
    """Return the pairs that were compared and everybody's preference, apart from training data."""
    tasks: dict[str, RankingTask] = {}
    rankings = []
    for task, row in store.answers("comparison"):
        assert isinstance(task, RankingTask)
        tasks[task.id] = task
        rankings.append(Ranking.from_json(row))
    return list(tasks.values()), rankings
