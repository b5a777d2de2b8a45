"""How good a reward model is on rankings it did not see.

Dimension key:  B prompts,  K responses to one prompt,  N comparisons.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch

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
from reward_models.records import Ranking
from stages.generation.score import batches_of
from stages.progress import Report, Step, announce, counted, silent
from stages.reward.batches import RankedPrompt
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


def comparisons(
    elements: Sequence[RankedPrompt],
    scores: Scores,
    annotators: Collection[str] | None = None,
) -> Comparisons:
    """Every untied pair of every annotator (or of those named), with the gap of its scores."""
    gaps: list[float] = []
    prompts: list[int] = []
    same: list[bool] = []
    number = {said: place for place, said in enumerate(sorted({one.said for one in elements}))}
    for element, score in zip(elements, scores, strict=True):
        for annotator, ranks in zip(element.annotators, element.ranks, strict=True):
            if annotators is not None and annotator not in annotators:
                continue
            for i, better in enumerate(ranks):
                for j, worse in enumerate(ranks):
                    if 0 < better < worse:
                        gaps.append(score[i] - score[j])
                        prompts.append(number[element.said])
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
    pairs = comparisons(held, scores)
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
