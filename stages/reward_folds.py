"""Do annotators that a reward model never learnt from agree with it?

Annotators are dealt into groups. For each group a model learns from all the others and is asked
about held-out prompts: as the others ranked them, and as the group did. The paper's 5 groups gave
72.4 % and 69.6 % (Ouyang et al. 2022, section 4.1).
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from reward_models.calibration import Comparisons, pair_accuracy
from reward_models.records import Ranking, RankingTask
from stages.config import RewardConfig
from stages.models import load_tokenizer
from stages.progress import Report, part_of
from stages.ranked_prompts import RankedPrompt, split_rankings
from stages.reward import fit, new_reward_model
from stages.reward_held_out import comparisons, score_elements
from stages.shared_prompt import choose_layout


def accuracy_on_unseen_annotators(
    config: RewardConfig,
    folds: int,
    *,
    base: str | Path,
    tasks: Sequence[RankingTask],
    rankings: Sequence[Ranking],
    work: Path,
    seed: int,
    report: Report,
) -> dict[str, Any]:
    """Pair accuracy within the groups learnt from and on the group left out, pooled over `folds`.

    `work` holds the checkpoints. Raises ValueError with fewer annotators than folds.
    """
    split = split_rankings(config, load_tokenizer(base), tasks, rankings, seed)
    elements, held = split.elements, split.held_out
    groups = annotator_groups({name for one in elements for name in one.annotators}, folds, seed)
    inside, outside = [], []
    for number, group in enumerate(groups):
        others = set().union(*groups) - group
        model = new_reward_model(config, base, seed)
        layout = choose_layout(model, elements)
        learnt = ranked_by(split.train, others)
        place = work / f"fold-{number}"
        told = part_of(report, number, folds, "annotator fold")
        trainer = fit(config, model, learnt, layout, checkpoints=place, seed=seed, report=told)
        scores = score_elements(trainer.scorer, held, layout)
        inside.append(comparisons(held, scores, others))
        outside.append(comparisons(held, scores, group))
    rng = np.random.default_rng(seed)
    return {
        "in_group": pair_accuracy(_joined(inside), rng).to_json(),
        "held_out_group": pair_accuracy(_joined(outside), rng).to_json(),
        "groups": [sorted(group) for group in groups],
        "seed": seed,
    }


def annotator_groups(annotators: set[str], folds: int, seed: int) -> list[set[str]]:
    """The annotators dealt at random into `folds` groups whose sizes differ by one at most."""
    if not 2 <= folds <= len(annotators):
        raise ValueError(f"{folds} folds of {len(annotators)} annotators; expected 2 to as many")
    order = sorted(annotators)
    random.Random(f"folds {seed}").shuffle(order)
    return [set(order[start::folds]) for start in range(folds)]


def ranked_by(elements: Sequence[RankedPrompt], annotators: set[str]) -> list[RankedPrompt]:
    """The elements with these annotators' ranks alone, where they leave a pair."""
    kept = []
    for element in elements:
        rows = [
            (annotator, ranks)
            for annotator, ranks in zip(element.annotators, element.ranks, strict=True)
            if annotator in annotators
        ]
        only = replace(
            element,
            annotators=tuple(annotator for annotator, _ in rows),
            ranks=tuple(ranks for _, ranks in rows),
        )
        if only.num_pairs:
            kept.append(only)
    return kept


def _joined(parts: Sequence[Comparisons]) -> Comparisons:
    return Comparisons(
        np.concatenate([part.gap_N for part in parts]),
        np.concatenate([part.prompt_N for part in parts]),
        np.concatenate([part.same_model_N for part in parts]),
    )
