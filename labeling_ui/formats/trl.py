"""Rankings as TRL's preference pairs."""

from collections.abc import Iterable, Sequence
from typing import Any

from reward_models.conversations import Turn
from reward_models.records import Ranking, RankingTask

Row = dict[str, Any]


def preference_pairs(tasks: Sequence[RankingTask], rankings: Iterable[Ranking]) -> list[Row]:
    """Return one row for every untied pair, in TRL's explicit-prompt preference form.

    `margin` is the distance in ranks; a context passage stands before its prompt. Where any
    task has earlier turns, all rows are in the conversational form, since a column has one type.
    """
    by_id = {task.id: task for task in tasks}
    is_conversational = any(task.history for task in tasks)
    rows = []
    for ranking in rankings:
        task = by_id[ranking.task]
        texts = {response.id: response.text for response in task.responses}
        prompt = task.prompt if task.context is None else f"{task.context}\n\n{task.prompt}"
        for better, worse in ranking.comparisons():
            pair = {"prompt": prompt, "chosen": texts[better], "rejected": texts[worse]}
            rows.append(
                {
                    **(_conversational(task.history, pair) if is_conversational else pair),
                    "margin": ranking.ranks[worse] - ranking.ranks[better],
                    "task": task.id,
                    "annotator": ranking.annotator,
                    "kind": ranking.kind,
                }
            )
    return rows


def _conversational(history: Sequence[Turn], pair: dict[str, str]) -> Row:
    prompt = [turn.to_json() for turn in (*history, Turn("user", pair["prompt"]))]
    answers = {name: [Turn("assistant", pair[name]).to_json()] for name in ("chosen", "rejected")}
    return {"prompt": prompt, **answers}
