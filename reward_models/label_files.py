"""Files of ranking tasks and of rankings, matched by what they name: nothing stands twice."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from reward_models.records import Ranking, RankingTask, read_placed


class Once:
    """The line of each thing of a kind; a second one of the same name is refused."""

    def __init__(self) -> None:
        self.places: dict[tuple[str, ...], str] = {}

    def add(self, where: str, what: str, *key: str) -> None:
        """Take note of what stands there; ValueError names both places of what stands twice."""
        first = self.places.setdefault(key, where)
        if first != where:
            raise ValueError(f"{where}: {what} stands here again; it is at {first} already")


def read_tasks(path: Path) -> list[RankingTask]:
    """The tasks of a file; ValueError `file:line: ...` on a bad one, and on an id there before."""
    tasks = list(_each_once(read_placed(path, RankingTask)))
    if not tasks:
        raise ValueError(f"{path}: no ranking task in it")
    return tasks


def read_rankings(path: Path, tasks: Iterable[RankingTask]) -> list[Ranking]:
    """The rankings of a file about these tasks.

    ValueError `file:line: ...` on one of an unknown task, or that does not rank its responses, and
    where an annotator ranks a task that he has ranked before in this file.
    """
    by_id = {task.id: task for task in tasks}
    once, rankings = Once(), []
    for where, ranking in read_placed(path, Ranking):
        try:
            if ranking.task not in by_id:
                raise ValueError(f"no task '{ranking.task}' among the {len(by_id)} tasks")
            ranking.check_against(by_id[ranking.task])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        what = f"the ranking of task '{ranking.task}' by '{ranking.annotator}'"
        once.add(where, what, ranking.task, ranking.annotator)
        rankings.append(ranking)
    return rankings


def _each_once(placed: Iterable[tuple[str, RankingTask]]) -> Iterator[RankingTask]:
    once = Once()
    for where, task in placed:
        once.add(where, f"task '{task.id}'", task.id)
        yield task
