"""What an owner should look at about a person; nothing of it blocks anybody."""

from collections.abc import Mapping, Sequence

from reward_models.intervals import Rate
from reward_models.records import Ranking, RankingTask

FAST_S_PER_100_WORDS = 4.0  # nobody reads 1,500 words a minute
FOLLOWS_ORDER = 0.6  # share of pairs won by the one shown first, beyond which the order is followed
ENOUGH_PAIRS = 50
SOFT_CUT_OFF = 0.75  # Ouyang et al. 2022, appendix B.1
DISPUTED = 0.6  # a task whose annotators agree on less is shown for adjudication


def remarks_on(
    rankings: Sequence[Ranking], by_id: Mapping[str, RankingTask], rates: Mapping[str, Rate]
) -> list[str]:
    """What an owner should look at; nothing of it blocks anybody."""
    remarks = []
    for name, what, wanted in (("agreement", "others", DISPUTED), ("gold", "gold", SOFT_CUT_OFF)):
        rate = rates[name]
        if rate.high is not None and rate.num_pairs >= ENOUGH_PAIRS and rate.high < wanted:
            remarks.append(f"agrees with {what} on {rate.value:.0%} of pairs, below {wanted:.0%}")
    first = rates["first_wins"]
    if first.low is not None and first.num_pairs >= ENOUGH_PAIRS and first.low > FOLLOWS_ORDER:
        remarks.append(f"follows the order shown ({first.value:.0%} of pairs)")
    fast = [r for r in rankings if r.seconds is not None and r.task in by_id and _is_fast(r, by_id)]
    if len(fast) > 5 and len(fast) > len(rankings) / 5:
        remarks.append(f"{len(fast)} rankings faster than one can read")
    tied = sum(len(set(ranking.ranks.values())) == 1 for ranking in rankings)
    if tied > 5 and tied > len(rankings) / 4:
        remarks.append(f"{tied} rankings tie everything")
    return remarks


def _is_fast(ranking: Ranking, by_id: Mapping[str, RankingTask]) -> bool:
    task = by_id[ranking.task]
    words = len(task.prompt.split()) + sum(len(r.text.split()) for r in task.responses)
    assert ranking.seconds is not None
    return ranking.seconds < FAST_S_PER_100_WORDS * words / 100
