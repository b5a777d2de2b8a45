"""Practice tasks: what a person is shown after an answer, and nobody before.

Practice comes first, counts in no number about the labels, and teaches: the order that is known to
be right stands beside the person's own, with the reason.
"""

from typing import Any

from labeling_ui.rendering import safe_html, snippet
from labeling_ui.reports.quality import matching_pairs
from labeling_ui.store.store import Store
from reward_models.records import Ranking, RankingTask


def feedback(store: Store, ranking: Ranking) -> dict[str, Any] | None:
    """Return how a person's ranking compares with the right one; None where it is no practice."""
    lesson = store.lesson(ranking.task)
    if lesson is None or ranking.skipped is not None:
        return None
    right, explanation = lesson
    task: RankingTask = store.task(ranking.task)
    same, pairs = matching_pairs(ranking, right)
    outputs = [
        {
            "snippet": snippet(response.text),
            "given": ranking.ranks[response.id],
            "right": right[response.id],
        }
        for response in sorted(task.responses, key=lambda response: right[response.id])
    ]
    return {
        "outputs": outputs,
        "same": same,
        "pairs": pairs,
        "explanation": safe_html(explanation),
    }
