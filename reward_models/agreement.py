"""How far annotators agree, and how well any reward model could do against one of them.

The ceiling. Suppose that every pair has a true order, and that each annotator gives it with the
same chance c, independently. Two annotators then agree with chance a = c^2 + (1 - c)^2, so

    c = (1 + sqrt(2 a - 1)) / 2,

and c is the accuracy that the true order itself would reach against a single annotator: the noise
ceiling. The paper's a = 73 % gives c = 84 %. Where some pairs are harder than others the estimate
is too high, a = 1/2 + 2 E[(c - 1/2)^2] >= 1/2 + 2 (E[c] - 1/2)^2, so it bounds the ceiling from
above. `majority_accuracy` is what one real predictor reaches, the majority of the other annotators,
on pairs that three or more ordered; those are easier than pairs that most annotators tie.

Ties do not count. Every annotator's order of a pair weighs the same, as it does in a reward model's
accuracy: its agreement is the share of the other annotators' orders that are the same. Numpy only.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from reward_models.calibration import Floats, rate_by_prompt
from reward_models.records import Ranking


def oracle_accuracy(agreement: Floats) -> Floats:
    """c from a, elementwise; .5 where annotators agree no more than by chance."""
    return (1.0 + np.sqrt(np.maximum(2.0 * agreement - 1.0, 0.0))) / 2.0


def noise_ceiling(rankings: Iterable[Ranking], rng: np.random.Generator) -> dict[str, Any] | None:
    """Agreement and what it lets one reach, with intervals; None if no pair was ordered twice."""
    agree: list[float] = []
    agree_task: list[int] = []
    majority: list[float] = []
    majority_task: list[int] = []
    for task, votes in _votes(rankings):
        for vote in votes:
            others, alike = len(votes) - 1, votes.count(vote) - 1
            if others >= 1:
                agree.append(alike / others)
                agree_task.append(task)
            if others >= 2:
                majority.append(_right(alike, others))
                majority_task.append(task)
    if not agree:
        return None
    agree_N, task_N = np.asarray(agree), np.asarray(agree_task)
    led = rate_by_prompt(np.asarray(majority), np.asarray(majority_task, dtype=np.int64), rng)
    return {
        "agreement": rate_by_prompt(agree_N, task_N, rng).to_json(),
        "oracle_accuracy": rate_by_prompt(agree_N, task_N, rng, oracle_accuracy).to_json(),
        "majority_accuracy": led.to_json(),
    }


def _votes(rankings: Iterable[Ranking]) -> Iterator[tuple[int, list[bool]]]:
    """For each pair of responses: its task's number, and for each who ordered it, which way."""
    votes: dict[tuple[str, str, str], list[bool]] = defaultdict(list)
    numbers: dict[str, int] = {}
    for ranking in rankings:
        numbers.setdefault(ranking.task, len(numbers))
        for better, worse in ranking.comparisons():
            first, second = sorted((better, worse))
            votes[ranking.task, first, second].append(first == better)
    for (task, _, _), given in votes.items():
        yield numbers[task], given


def _right(alike: int, others: int) -> float:
    """1 where most of the others order the pair alike, one half where they are split."""
    return 0.5 if 2 * alike == others else float(2 * alike > others)
