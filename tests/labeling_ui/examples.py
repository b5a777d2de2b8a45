"""Small tasks that several tests use."""

from reward_models.records import RankingTask, Response


def small_task(name: str, num_responses: int = 4) -> RankingTask:
    """A task whose responses are called a, b, c, ..."""
    letters = "abcdefghi"[:num_responses]
    responses = tuple(Response(i, f"text {i} of {name}", f"model-{i}", {"k": 1}) for i in letters)
    return RankingTask(name, f"prompt of {name}", responses)
