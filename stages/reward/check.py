"""Before PPO: does the reward model, as loaded here, still tell chosen from rejected?

A head that was lost on the way, rankings read the wrong way round, or a model that learned nothing
all give scores that PPO would follow faithfully. The rankings are those that the reward model's own
training held out.
"""

import logging
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from reward_models.calibration import pair_accuracy
from reward_models.model import RewardModel
from reward_models.records import Ranking, RankingTask
from stages.generation.score import score_sequences
from stages.progress import Report, Step, silent
from stages.reward.batches import RankedPrompt, split_rankings
from stages.reward.config import RewardConfig
from stages.reward.held_out import Scores, comparisons

CHANCE = 0.5
_NUM_PROMPTS = 200  # at most; enough to tell from chance
_AT_ONCE = 40  # prompts; most reward models show with so many that they are better than chance
_FEW_PROMPTS = 20  # below, the interval is too narrow to stop anybody by

log = logging.getLogger(__name__)


def held_out_prompts(
    config: RewardConfig,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[RankingTask],
    rankings: Sequence[Ranking],
    seed: int,
) -> list[RankedPrompt]:
    """The rankings that `train_reward` holds out under these settings and this seed."""
    return split_rankings(config, tokenizer, tasks, rankings, seed).held_out


def check_reward_model(
    model: RewardModel, held_out: Sequence[RankedPrompt], report: Report = silent
) -> float | None:
    """The share of held-out pairs ordered as the annotators did; None where there are none.

    No more prompts are scored than tell it from chance. A share that is below chance beyond doubt
    (95 % interval over prompts) raises ValueError; one that cannot be told from it is warned of.
    """
    scores: Scores = []
    most = min(_NUM_PROMPTS, len(held_out))
    for start in range(0, max(1, most), _AT_ONCE):
        sample = held_out[start : min(start + _AT_ONCE, most)]
        rows = [[*one.prompt, *response] for one in sample for response in one.responses]
        left = iter(score_sequences(model, rows))
        scores += [tuple(next(left) for _ in one.responses) for one in sample]
        pairs = comparisons(held_out[: len(scores)], scores)
        found = pair_accuracy(pairs, np.random.default_rng(0))
        report(Step(len(scores), most))
        low, high = found.low, found.high
        if low is not None and high is not None and not low <= CHANCE <= high:
            break
    if found.value is None or found.low is None or found.high is None:
        log.info(
            "no held-out ranking to check the reward model by; reward.held_out sets some apart"
        )
        return None
    said = (
        f"the reward model orders {found.value:.1%} ({found.low:.1%} to {found.high:.1%}) of "
        f"{found.num_pairs} held-out pairs as the annotators did"
    )
    if found.high < CHANCE and found.num_prompts >= _FEW_PROMPTS:
        raise ValueError(
            f"{said}, less than chance: its head was lost, or ranks were read the wrong way "
            "round (1 is best); PPO would learn what people like least"
        )
    if found.low <= CHANCE:
        log.warning("%s, no better than chance for all one can tell: collect more rankings", said)
    return found.value
