"""Disagreements, settled by a reviewer: a ranking that takes the place of those it settles.

It is an answer to a task of its own, so that it can be drafted, amended and looked up like any
other, and so that agreement is still counted among those who disagreed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from labeling_ui.forms import TaskKind
from labeling_ui.reports.agreement import overlaps
from labeling_ui.reports.quality import disputed
from labeling_ui.store.records import add_room_tasks, answers_of
from labeling_ui.store.store import Store
from labeling_ui.tasks.assignment import Assignment, Lease
from labeling_ui.tasks.by_name import take_task
from reward_models.records import Ranking

KIND: TaskKind = "adjudication"


def disputes(store: Store) -> list[dict[str, Any]]:
    """Tasks whose annotators agree least, worst first, those settled left out."""
    settled = {ranking.task for ranking in adjudications(store)}
    by_id = {task.id: task for task in store.tasks()}
    found = disputed(overlaps(store.rankings()), by_id)
    return [row for row in found if row["task"] not in settled]


def take_dispute(assignment: Assignment, task_id: str, reviewer: str) -> Lease:
    """Give a reviewer a ranked task to settle; ValueError if there is no such task."""
    store = assignment.store
    task = store.task(task_id)
    name = f"{task_id}/{KIND}"
    settling = replace(task, id=name, extra={**task.extra, "settles": task_id})
    add_room_tasks(store, KIND, [settling], is_open=False)
    return take_task(assignment, reviewer, name)


def settled_by(store: Store, record: Mapping[str, Any]) -> list[Ranking]:
    """The rankings that the adjudication of this record settles."""
    return [ranking for ranking in store.rankings() if ranking.task == record["settles"]]


def adjudications(store: Store) -> list[Ranking]:
    """What reviewers decided, as rankings of the tasks that they settled."""
    return [
        Ranking.from_json({**row, "task": task.extra["settles"], "adjudicates": True})
        for task, row in answers_of(store, KIND)
    ]


def settled_rankings(store: Store) -> list[Ranking]:
    """The rankings that count: where a reviewer has decided, that one instead of all others."""
    decided = adjudications(store)
    return settle(store.rankings(), decided)


def settle(rankings: Sequence[Ranking], decided: Sequence[Ranking]) -> list[Ranking]:
    """Leave out the rankings of tasks that are decided, and add the decisions."""
    done = {ranking.task for ranking in decided}
    return [*(ranking for ranking in rankings if ranking.task not in done), *decided]
