"""How good a reward model is on rankings it did not see.

Dimension key:  B prompts,  K responses to one prompt,  N comparisons.
"""

import logging
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from reward_models.calibration import (
    Comparisons,
    by_confidence,
    calibration_error,
    length_correlation,
    noise_ceiling,
    pair_accuracy,
)
from reward_models.model import RewardModel
from reward_models.ranking_loss import pool_pairs
from reward_models.records import Ranking, RankingTask
from stages.generation.score import batches_of, score_sequences
from stages.progress import Report, Step, announce, counted, silent
from stages.reward.batches import RankedPrompt, split_rankings
from stages.reward.config import RewardConfig
from stages.reward.shared_prompt import Layout

_MOST_PROMPTS = 32  # read at once

Scores = list[tuple[float, ...]]


def score_elements(
    model: RewardModel,
    elements: Sequence[RankedPrompt],
    layout: Layout,
    *,
    report: Report = silent,
) -> Scores:
    """The scores of each prompt's responses, in the order given."""
    scores: Scores = [()] * len(elements)
    device = model.head.weight.device
    lengths = [element.row_tokens for element in elements]
    done = 0
    with torch.no_grad():
        for places in batches_of(lengths, model.head.in_features, _MOST_PROMPTS, device):
            batch = layout.collate([elements[place] for place in places], pool_pairs)
            batch = {name: value.to(device) for name, value in batch.items()}
            for place, row in zip(places, layout.scores(model, batch).tolist(), strict=True):
                scores[place] = tuple(row[: len(elements[place].responses)])
            done += len(places)
            report(Step(done, len(scores)))
    return scores


def scored_comparisons(
    elements: Sequence[RankedPrompt],
    scores: Scores,
    annotators: Collection[str] | None = None,
) -> Comparisons:
    """Every untied pair of every annotator (or of those named), with the gap of its scores."""
    gaps: list[float] = []
    prompts: list[int] = []
    same: list[bool] = []
    number = {
        said: place for place, said in enumerate(sorted({one.conversation for one in elements}))
    }
    for element, score in zip(elements, scores, strict=True):
        for annotator, ranks in zip(element.annotators, element.ranks, strict=True):
            if annotators is not None and annotator not in annotators:
                continue
            for i, better in enumerate(ranks):
                for j, worse in enumerate(ranks):
                    if 0 < better < worse:
                        gaps.append(score[i] - score[j])
                        prompts.append(number[element.conversation])
                        same.append(element.models[i] == element.models[j])
    return Comparisons(
        np.asarray(gaps, dtype=np.float64),
        np.asarray(prompts, dtype=np.int64),
        np.asarray(same, dtype=np.bool_),
    )


def held_out_report(
    model: RewardModel,
    held: Sequence[RankedPrompt],
    layout: Layout,
    rankings: Sequence[Ranking],
    *,
    kinds: Collection[str],
    seed: int,
    report: Report = silent,
) -> dict[str, Any]:
    """What `held_out.json` holds; `kinds` are those of the labels.

    The ceiling is estimated from all rankings, held out or not.

    Pairs by one policy are also counted alone: telling a base's output from a fine-tuned model's is
    easy, and raises the accuracy over all pairs without helping PPO.
    """
    rng = np.random.default_rng(seed)
    told = counted(report, "scoring the responses to held-out prompts")
    scores = score_elements(model, held, layout, report=told)
    announce(report, "bootstrapping the intervals of held-out accuracy")
    pairs = scored_comparisons(held, scores)
    overall = pair_accuracy(pairs, rng)
    return {
        "pair_accuracy": overall.value,
        "ci95": overall.to_json()["ci95"],
        "n_pairs": overall.num_pairs,
        "n_prompts": overall.num_prompts,
        "within_model": pair_accuracy(pairs.where(pairs.same_model_N), rng).to_json(),
        "across_models": pair_accuracy(pairs.where(~pairs.same_model_N), rng).to_json(),
        "by_confidence": by_confidence(pairs, rng),
        "calibration_error": calibration_error(pairs),
        "length_correlation": _length_correlation(held, scores, rng),
        "ceiling": noise_ceiling(rankings, rng),
        "label_kinds": sorted(kinds),
        "interval": "percentile bootstrap over prompts, 1000 draws",
    }


def _length_correlation(
    held: Sequence[RankedPrompt], scores: Scores, rng: np.random.Generator
) -> dict[str, Any]:
    rows = [
        (score, len(response), place)
        for place, (element, given) in enumerate(zip(held, scores, strict=True))
        for score, response in zip(given, element.responses, strict=True)
    ]
    score_N, length_N, prompt_N = np.asarray(rows, dtype=np.float64).reshape(-1, 3).T
    return length_correlation(score_N, length_N, prompt_N.astype(np.int64), rng)


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
        pairs = scored_comparisons(held_out[: len(scores)], scores)
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
