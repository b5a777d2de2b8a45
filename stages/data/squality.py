"""SQuALITY's human evaluation: three summaries of a story for a question, ranked by three people.

Wang et al. 2022, "SQuALITY: Building a Long-Document Summarization Dataset the Hard Way"; the file
is `data/human-eval/all-responses.jsonl` of github.com/nyu-mll/SQuALITY (CC BY 4.0). A line has

    passage-id; questions: {number: {system: {response, reviews: [{worker_id, overall-rank, ...}]}}}

The file holds neither story nor question, so that a task's prompt only names them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reward_models.label_files import Once
from reward_models.records import Ranking, RankingTask, Response
from reward_models.row_files import read_rows


def load_squality(path: Path) -> tuple[list[RankingTask], list[Ranking]]:
    """All tasks and every reviewer's order "overall"; ValueError names the line that is wrong."""
    tasks: list[RankingTask] = []
    rankings: list[Ranking] = []
    once = Once()
    for where, row in read_rows(path):
        try:
            for question, systems in row["questions"].items():
                name = f"squality-{row['passage-id']}-{question}"
                once.add(f"{where}, question {question}", f"task '{name}'", name)
                tasks.append(_task(name, row["passage-id"], question, systems))
                for ranking in _rankings(name, systems):
                    ranking.check_against(tasks[-1])
                    rankings.append(ranking)
        except KeyError as error:
            raise ValueError(f"{where}: key {error} is missing") from None
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from None
    return tasks, rankings


def _task(
    name: str, passage: str, question: str, systems: Mapping[str, Mapping[str, Any]]
) -> RankingTask:
    responses = tuple(
        Response(id=system, text=given["response"], model=system, sampling={})
        for system, given in systems.items()
    )
    prompt = f"Question {question} about the story of Project Gutenberg number {passage}"
    return RankingTask(id=name, prompt=prompt, category="summarization", responses=responses)


def _rankings(name: str, systems: Mapping[str, Mapping[str, Any]]) -> list[Ranking]:
    by_worker: dict[str, dict[str, Mapping[str, Any]]] = {}
    for system, given in systems.items():
        for review in given["reviews"]:
            by_worker.setdefault(review["worker_id"], {})[system] = review
    return [
        Ranking(
            task=name,
            annotator=f"squality-{worker}",
            kind="imported",
            ranks={system: review["overall-rank"] for system, review in reviews.items()},
            extra={"overall_of_100": {s: r["overall-rating"] for s, r in reviews.items()}},
        )
        for worker, reviews in by_worker.items()
    ]
