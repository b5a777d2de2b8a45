"""How well a reward model would order prompts it never saw, asked of every prompt.

With few rankings a held-out share is either too small to tell anything or missed in training. So
prompts are dealt into folds; for each, a model learns from all the others and orders its pairs. The
pairs of all folds together give one accuracy, with its interval over prompts. Nothing may be chosen
by it: a configuration that was picked because it did best here would be flattered.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reward_models.calibration import pair_accuracy
from reward_models.records import Ranking, RankingTask
from stages.config import RewardConfig
from stages.frozen_states import layout_for
from stages.models import load_tokenizer
from stages.progress import Report, part_of
from stages.ranked_prompts import RankedPrompt, split_rankings
from stages.reward import fit, new_reward_model
from stages.reward_held_out import comparisons, score_elements


def accuracy_over_all_prompts(
    config: RewardConfig,
    folds: int,
    *,
    base: str | Path,
    tasks: Sequence[RankingTask],
    rankings: Sequence[Ranking],
    states: Path,
    work: Path,
    seed: int,
    report: Report,
) -> dict[str, Any]:
    """Pair accuracy with every prompt held out once; `work` holds the checkpoints.

    `states` is a folder where a probe's states may lie (see `stages.frozen_states`). Raises
    ValueError with fewer prompts than folds.
    """
    elements = split_rankings(config, load_tokenizer(base), tasks, rankings, seed).elements
    groups = prompt_groups(elements, folds, seed)
    layout = layout_for(new_reward_model(config, base, seed), elements, states)
    held, scores = [], []
    for number, group in enumerate(groups):
        trainer = fit(
            config,
            new_reward_model(config, base, seed),
            [element for element in elements if element.said not in group],
            layout,
            checkpoints=work / f"fold-{number}",
            seed=seed,
            report=part_of(report, number, folds, "prompt fold"),
        )
        mine = [element for element in elements if element.said in group]
        held += mine
        scores += score_elements(trainer.scorer, mine, layout)
    rng = np.random.default_rng(seed)
    tokens = [tuple(float(len(response)) for response in one.responses) for one in held]
    return {
        "pair_accuracy": pair_accuracy(comparisons(held, scores), rng).to_json(),
        "longer_wins": pair_accuracy(comparisons(held, tokens), rng).to_json(),
        "folds": folds,
        "seed": seed,
    }


def prompt_groups(elements: Sequence[RankedPrompt], folds: int, seed: int) -> list[set[str]]:
    """What was said in each fold: dealt at random, sizes differing by one prompt at most."""
    prompts = sorted({element.said for element in elements})
    if not 2 <= folds <= len(prompts):
        raise ValueError(f"{folds} folds of {len(prompts)} prompts; expected 2 to as many")
    random.Random(f"prompt folds {seed}").shuffle(prompts)
    return [set(prompts[start::folds]) for start in range(folds)]
