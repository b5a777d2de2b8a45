"""Small tasks, and people at work, that several tests use."""

import threading
from collections.abc import Callable, Iterable

from reward_models.records import Ranking, RankingTask, Response


def small_task(name: str, num_responses: int = 4) -> RankingTask:
    """A task whose responses are called a, b, c, ..."""
    letters = "abcdefghi"[:num_responses]
    responses = tuple(Response(i, f"text {i} of {name}", f"model-{i}", {"k": 1}) for i in letters)
    return RankingTask(name, f"prompt of {name}", responses)


def ranks_of(order: Iterable[str]) -> dict[str, int]:
    """Ranks without ties of responses, best first."""
    return {name: rank for rank, name in enumerate(order, 1)}


def ranking(
    task: str, annotator: str = "ada", order: Iterable[str] = "abcd", **more: object
) -> Ranking:
    """A person's ranking without ties, best first."""
    return Ranking(task, annotator, "human", ranks_of(order), **more)  # type: ignore[arg-type]


def at_once(work: Callable[[str], None], names: Iterable[str]) -> None:
    """Let these people work at the same time, each in a thread, until all are done."""
    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
