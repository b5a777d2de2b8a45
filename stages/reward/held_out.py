"""The quality of a reward model on rankings that it was not trained on.

Dimension key:  B prompts,  K responses to one prompt,  N comparisons.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from itertools import permutations
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
from reward_models.records import Ranking
from stages.generation.score import batches_of, score_sequences
from stages.progress import Report, Step, announce, counted, silent
from stages.reward.batches import RankedPrompt
from stages.reward.shared_prompt import Layout

Scores = list[tuple[float, ...]]
CHANCE = 0.5
_PROMPTS_PER_BATCH = 32
_MAX_CHECKED = 200  # prompts; enough to tell an accuracy from chance
_CHECKED_AT_ONCE = 40  # prompts; most reward models differ from chance with so many
_MIN_TO_REFUSE = 20  # prompts; with fewer the interval is too narrow to refuse a model by

log = logging.getLogger(__name__)


def score_elements(
    model: RewardModel,
    elements: Sequence[RankedPrompt],
    layout: Layout,
    *,
    report: Report = silent,
) -> Scores:
    """Return the scores of each prompt's responses, in the order given."""
    scores: Scores = [()] * len(elements)
    device = model.head.weight.device
    lengths = [element.row_tokens for element in elements]
    done = 0
    with torch.no_grad():
        for indices in batches_of(lengths, model.head.in_features, _PROMPTS_PER_BATCH, device):
            batch = layout.collate([elements[index] for index in indices])
            batch = {name: value.to(device) for name, value in batch.items()}
            for index, row in zip(indices, layout.scores(model, batch).tolist(), strict=True):
                scores[index] = tuple(row[: len(elements[index].responses)])
            done += len(indices)
            report(Step(done, len(scores)))
    return scores


def scored_comparisons(
    elements: Sequence[RankedPrompt],
    scores: Scores,
    annotators: Collection[str] | None = None,
) -> Comparisons:
    """Return every untied pair of every annotator (or of those named), with its scores' gap."""
    numbers = {text: n for n, text in enumerate(sorted({one.conversation for one in elements}))}
    rows = [
        (score[i] - score[j], numbers[element.conversation], element.models[i] == element.models[j])
        for element, score in zip(elements, scores, strict=True)
        for annotator, ranks in zip(element.annotators, element.ranks, strict=True)
        if annotators is None or annotator in annotators
        for i, j in permutations(range(len(ranks)), 2)
        if 0 < ranks[i] < ranks[j]
    ]
    gap_N, prompt_N, same_model_N = zip(*rows, strict=True) if rows else ((), (), ())
    return Comparisons(
        np.asarray(gap_N, dtype=np.float64),
        np.asarray(prompt_N, dtype=np.int64),
        np.asarray(same_model_N, dtype=np.bool_),
    )


def held_out_report(
    model: RewardModel,
    held_out: Sequence[RankedPrompt],
    layout: Layout,
    rankings: Sequence[Ranking],
    *,
    mix: Mapping[str, int],
    seed: int,
    report: Report = silent,
) -> dict[str, Any]:
    """Return the contents of `held_out.json`; `mix` counts those trained on by kind.

    The ceiling is estimated from all rankings by people, held out or not.

    Pairs by one policy are also counted alone: telling a base's output from a fine-tuned model's is
    easy, and raises the accuracy over all pairs without helping PPO.
    """
    rng = np.random.default_rng(seed)
    counting = counted(report, "scoring the responses to held-out prompts")
    scores = score_elements(model, held_out, layout, report=counting)
    announce(report, "bootstrapping the intervals of held-out accuracy")
    pairs = scored_comparisons(held_out, scores)
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
        "length_correlation": _length_correlation(held_out, scores, rng),
        "ceiling": noise_ceiling((one for one in rankings if one.kind != "judge"), rng),
        "label_kinds": sorted(mix),
        "mix": dict(mix),
        "interval": "percentile bootstrap over prompts, 1000 draws",
    }


def _length_correlation(
    held_out: Sequence[RankedPrompt], scores: Scores, rng: np.random.Generator
) -> dict[str, Any]:
    rows = [
        (score, len(response), number)
        for number, (element, row) in enumerate(zip(held_out, scores, strict=True))
        for score, response in zip(row, element.responses, strict=True)
    ]
    score_N, length_N, prompt_N = np.asarray(rows, dtype=np.float64).reshape(-1, 3).T
    return length_correlation(score_N, length_N, prompt_N.astype(np.int64), rng)


def check_reward_model(
    model: RewardModel, held_out: Sequence[RankedPrompt], report: Report = silent
) -> float | None:
    """Return the share of held-out pairs ordered as the annotators did; None without any.

    This is the check before PPO. A head that was lost, ranks taken the wrong way round, or a model
    that learned nothing all give scores that PPO would follow faithfully. A share that is below
    chance beyond doubt (95 % interval over prompts) raises ValueError; one that cannot be told from
    chance is warned of. No more prompts are scored than that takes.
    """
    scores: Scores = []
    most = min(_MAX_CHECKED, len(held_out))
    for start in range(0, max(1, most), _CHECKED_AT_ONCE):
        sample = held_out[start : min(start + _CHECKED_AT_ONCE, most)]
        rows = [[*one.prompt, *response] for one in sample for response in one.responses]
        remaining = iter(score_sequences(model, rows))
        scores += [tuple(next(remaining) for _ in one.responses) for one in sample]
        pairs = scored_comparisons(held_out[: len(scores)], scores)
        accuracy = pair_accuracy(pairs, np.random.default_rng(0))
        report(Step(len(scores), most))
        low, high = accuracy.low, accuracy.high
        if low is not None and high is not None and not low <= CHANCE <= high:
            break
    if accuracy.value is None or low is None or high is None:
        log.info(
            "no held-out ranking to check the reward model by; reward.held_out sets some apart"
        )
        return None
    result = (
        f"the reward model orders {accuracy.value:.1%} ({low:.1%} to {high:.1%}) of "
        f"{accuracy.num_pairs} held-out pairs as the annotators did"
    )
    if high < CHANCE and accuracy.num_prompts >= _MIN_TO_REFUSE:
        raise ValueError(
            f"{result}, less than chance: its head was lost, or the ranks are the wrong way round "
            "(1 is best); PPO would learn what people like least"
        )
    if low <= CHANCE:
        log.warning("%s, which may be chance: collect more rankings", result)
    return accuracy.value
