"""Adjudication: a reviewer's ranking takes the place of those that disagree.

It is an answer to a task of its own, so that it can be drafted, amended and looked up like any
other, and so that agreement is still counted among those who disagreed. It is blind: others' ranks
are shown only to a reviewer who has ranked all outputs, and the log has the order before that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from labeling_ui.forms import TaskKind
from labeling_ui.reports.agreement import overlaps
from labeling_ui.reports.quality import disputed
from labeling_ui.store.store import Store
from labeling_ui.tasks.assignment import Assignment, Lease
from reward_models.records import Ranking, RankingTask

KIND: TaskKind = "adjudication"


def disputes(store: Store) -> list[dict[str, Any]]:
    """Return the tasks whose annotators agree least, worst first, those settled left out."""
    settled = {ranking.task for ranking in adjudications(store)}
    by_id = {task.id: task for task in store.tasks()}
    rows = disputed(overlaps(store.rankings()), by_id)
    return [row for row in rows if row["task"] not in settled]


def take_dispute(assignment: Assignment, task_id: str, reviewer: str) -> Lease:
    """Give a reviewer a ranked task to settle; ValueError if there is none, or it is settled."""
    if task_id in {ranking.task for ranking in adjudications(assignment.store)}:
        raise ValueError("this disagreement is settled already")
    task = assignment.store.task(task_id)
    name = f"{task_id}/{KIND}"
    settling = replace(task, id=name, extra={**task.extra, "settles": task_id})
    assignment.store.add_tasks([settling], KIND, is_open=False)
    return assignment.take(reviewer, name)


def show_ranks(
    store: Store, lease: Lease, reviewer: str, tiers: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Return the ranks that others gave, each in the order shown, to who has ranked all outputs.

    `tiers` is the reviewer's own order by then; the log has it.
    """
    if lease.kind != KIND:
        raise ValueError("others' ranks are shown to whoever settles a disagreement")
    if sorted(i for tier in tiers for i in tier) != list(range(len(lease.shown_order))):
        raise ValueError("others' ranks are shown once all outputs are ranked")
    blind = {lease.shown_order[i]: rank for rank, tier in enumerate(tiers, 1) for i in tier}
    with store.database.write() as connection:
        store.log(connection, reviewer, "saw others' ranks", lease.task, {"ranks": blind})
    return given_ranks(store, lease)


def given_ranks(store: Store, lease: Lease) -> list[list[int]]:
    """Return the ranks that others gave, without their names, in the order shown."""
    rankings = settled_by(store, lease.record)
    return [[ranking.ranks[name] for name in lease.shown_order] for ranking in rankings]


def settled_by(store: Store, record: Mapping[str, Any]) -> list[Ranking]:
    """Return the rankings that the adjudication of this record settles."""
    return [ranking for ranking in store.rankings() if ranking.task == record["settles"]]


def adjudications(store: Store) -> list[Ranking]:
    """Return the reviewers' decisions as rankings of the tasks that they settled."""
    decisions = []
    for task, row in store.answers(KIND):
        assert isinstance(task, RankingTask)
        row = {**row, "task": task.extra["settles"], "adjudicates": True}
        decisions.append(Ranking.from_json(row))
    return decisions


def settled_rankings(store: Store) -> list[Ranking]:
    """Return the rankings that count: a reviewer's decision instead of all others."""
    return settle(store.rankings(), adjudications(store))


def settle(rankings: Sequence[Ranking], decisions: Sequence[Ranking]) -> list[Ranking]:
    """Leave out the rankings of tasks that are decided, and add the decisions."""
    settled = {ranking.task for ranking in decisions}
    return [*(ranking for ranking in rankings if ranking.task not in settled), *decisions]
