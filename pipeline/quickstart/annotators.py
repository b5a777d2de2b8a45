"""Simulated annotators: a pool of programs that rank responses, each in its own noisy way.

They are no people, and every ranking of theirs has `kind: "simulated"`. Each takes the gold
judgement of a response under the pool's taste, adds noise of its own, a bias to long or short
answers, and a slight bias to the first position; close utilities become ties. The
noise is set so that two of them agree on about 73 % of untied pairs, as the paper's labelers did
(section 3.4).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from pipeline.quickstart.judge import GOLD, Judgement, Taste, judge
from reward_models.records import Ranking, RankingTask, Response


@dataclass(frozen=True, slots=True)
class Annotator:
    """One annotator's habits, in units of the judge's score."""

    name: str
    noise: float  # standard deviation of the error on one response
    tie_below: float  # utilities closer than this are a tie
    per_word: float  # bias to long (positive) or short (negative) answers
    first_shown: float  # bias to the response at the top of the page


POOL = (
    Annotator("simulated-ada", 0.45, 0.15, 0.00, 0.00),
    Annotator("simulated-ben", 0.60, 0.20, -0.01, 0.05),
    Annotator("simulated-cleo", 0.50, 0.10, 0.01, 0.00),
    Annotator("simulated-dov", 0.75, 0.25, 0.00, 0.08),
    Annotator("simulated-eva", 0.65, 0.20, -0.02, 0.03),
)


def simulate(
    tasks: Sequence[RankingTask],
    worlds: Mapping[str, Mapping[str, object]],
    seed: int | str,
    taste: Taste = GOLD,
    overlap: float = 0.15,
) -> list[Ranking]:
    """Rank every task once, and a share `overlap` of them twice, so that agreement can be measured.

    `worlds` maps a task's id to the `extra["world"]` of its prompt.
    """
    rng = Random(f"annotators/{seed}")
    rankings = []
    for task in tasks:
        number = 2 if rng.random() < overlap else 1
        for annotator in rng.sample(POOL, number):
            rankings.append(rank(task, worlds[task.id], annotator, rng, taste))
    return rankings


def rank(
    task: RankingTask, spec: Mapping[str, object], annotator: Annotator, rng: Random, taste: Taste
) -> Ranking:
    """Return one annotator's ranking, ratings and flags for the responses of one task."""
    order = list(task.responses)
    rng.shuffle(order)
    judged = {response.id: _judged(spec, response, taste) for response in order}
    utility = {
        response.id: judged[response.id].score
        + rng.gauss(0.0, annotator.noise)
        + annotator.per_word * len(response.text.split())
        + annotator.first_shown * (position == 0)
        for position, response in enumerate(order)
    }
    return Ranking(
        task=task.id,
        annotator=annotator.name,
        kind="simulated",
        ranks=_ranks_with_ties(utility, annotator.tie_below),
        ratings={name: max(1, min(7, round(4 + 3 * value))) for name, value in utility.items()},
        flags={name: flags for name, mark in judged.items() if (flags := _flags(mark))},
        shown_order=[response.id for response in order],
    )


def _judged(spec: Mapping[str, object], response: Response, taste: Taste) -> Judgement:
    return judge(spec, response.text, response.ended, taste)


def _ranks_with_ties(utility: Mapping[str, float], tie_below: float) -> dict[str, int]:
    """Return ranks, best first; a response joins the tie above it while the step down is small."""
    order = sorted(utility, key=lambda name: -utility[name])
    ranks = {order[0]: 1}
    for above, name in pairwise(order):
        ranks[name] = ranks[above] + (utility[above] - utility[name] >= tie_below)
    return ranks


def _flags(mark: Judgement) -> list[str]:
    return [name for name, on in (("hallucination", mark.hallucinated), ("toxic", mark.rude)) if on]


def judge_agreement(
    tasks: Sequence[RankingTask],
    worlds: Mapping[str, Mapping[str, object]],
    rankings: Sequence[Ranking],
    taste: Taste = GOLD,
) -> float:
    """Return the share of the annotators' ordered pairs that the judge orders alike: a ceiling.

    Pairs that are equal to the judge count half, as a guess would. For real annotators it is
    unknown; the reward model's card estimates it from how often they agree.
    """
    by_id = {task.id: task for task in tasks}
    hits, pairs = 0.0, 0
    for ranking in rankings:
        responses = {response.id: response for response in by_id[ranking.task].responses}
        spec = worlds[ranking.task]
        score = {name: _judged(spec, response, taste).score for name, response in responses.items()}
        for better, worse in ranking.comparisons():
            hits += 0.5 * ((score[better] > score[worse]) + (score[better] >= score[worse]))
            pairs += 1
    return hits / pairs
