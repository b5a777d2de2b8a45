"""Cross-validation of a reward model: groups of annotators, or of prompts, left out in turn."""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from reward_models.atomic_files import write_json
from reward_models.calibration import Comparisons, pair_accuracy
from reward_models.records import JUDGE, Ranking, RankingTask, Use
from stages.models import load_tokenizer
from stages.progress import Report, part_of
from stages.reward.batches import (
    RankedPrompt,
    SplitRankings,
    ranked_by,
    ranked_for,
    split_rankings,
)
from stages.reward.config import RewardConfig
from stages.reward.held_out import Scores, score_elements, scored_comparisons
from stages.reward.shared_prompt import cached_layout, choose_layout
from stages.reward.train import fit, new_reward_model

ANNOTATOR_FOLDS, PROMPT_FOLDS = "annotator_folds.json", "prompt_folds.json"


def write_folds(
    config: RewardConfig,
    *,
    base: str | Path,
    tasks: Sequence[RankingTask],
    rankings: Sequence[Ranking],
    out: Path,
    seed: int,
    report: Report,
    use: Use = "both",
) -> None:
    """Write into `out` the folds that the config asks for; their models are removed.

    Their metrics are not the reward model's: only their progress is reported.
    """
    split = split_rankings(config, load_tokenizer(base), tasks, rankings, seed)
    work = out / "folds.work"
    results: dict[str, dict[str, Any]] = {}
    if config.annotator_folds is not None:
        results[ANNOTATOR_FOLDS] = accuracy_on_unseen_annotators(
            config, split, base=base, work=work / "annotators", seed=seed, report=report
        )
    if config.prompt_folds is not None:
        results[PROMPT_FOLDS] = accuracy_over_all_prompts(
            config,
            split.elements,
            base=base,
            states=out / "checkpoints",
            work=work / "prompts",
            seed=seed,
            report=report,
            use=use,
        )
    if results and PartialState().is_main_process:
        for name, result in results.items():
            write_json(out / name, result)
        shutil.rmtree(work)


def accuracy_on_unseen_annotators(
    config: RewardConfig,
    split: SplitRankings,
    *,
    base: str | Path,
    work: Path,
    seed: int,
    report: Report,
) -> dict[str, Any]:
    """Return the pair accuracy by annotators trained on and by those left out, over all folds.

    `work` holds the checkpoints. Raises ValueError with fewer annotators than folds.
    """
    assert config.annotator_folds is not None
    every = {name for element in split.elements for name in element.annotators}
    names = {name for name in every if not name.startswith(JUDGE)}
    groups = deal_into_folds(names, config.annotator_folds, f"folds {seed}", "annotators")
    trained_on, left_out = [], []
    for number, group in enumerate(groups):
        model = new_reward_model(config, base, seed)
        layout = choose_layout(model, split.elements)
        trainer = fit(
            config,
            model,
            ranked_by(split.train, names - group),
            layout,
            checkpoints=work / f"fold-{number}",
            seed=seed,
            report=part_of(report, number, len(groups), "annotator fold"),
        )
        scores = score_elements(trainer.scorer, split.held_out, layout)
        trained_on.append(scored_comparisons(split.held_out, scores, names - group))
        left_out.append(scored_comparisons(split.held_out, scores, group))
    rng = np.random.default_rng(seed)
    return {
        "in_group": pair_accuracy(_joined(trained_on), rng).to_json(),
        "held_out_group": pair_accuracy(_joined(left_out), rng).to_json(),
        "groups": [sorted(group) for group in groups],
        "seed": seed,
    }


def accuracy_over_all_prompts(
    config: RewardConfig,
    elements: Sequence[RankedPrompt],
    *,
    base: str | Path,
    states: Path,
    work: Path,
    seed: int,
    report: Report,
    use: Use = "both",
) -> dict[str, Any]:
    """Return the pair accuracy with every prompt held out once; `work` holds the checkpoints.

    `states` is the folder of a probe's cached states (see `stages.reward.shared_prompt`). Raises
    ValueError with fewer prompts than folds.
    """
    assert config.prompt_folds is not None
    prompts = {element.conversation for element in elements}
    groups = deal_into_folds(prompts, config.prompt_folds, f"prompt folds {seed}", "prompts")
    layout = cached_layout(new_reward_model(config, base, seed), elements, states)
    held_out: list[RankedPrompt] = []
    scores: Scores = []
    for number, group in enumerate(groups):
        trainer = fit(
            config,
            new_reward_model(config, base, seed),
            ranked_for([one for one in elements if one.conversation not in group], use),
            layout,
            checkpoints=work / f"fold-{number}",
            seed=seed,
            report=part_of(report, number, len(groups), "prompt fold"),
        )
        fold = ranked_for([one for one in elements if one.conversation in group], "people")
        held_out += fold
        scores += score_elements(trainer.scorer, fold, layout)
    rng = np.random.default_rng(seed)
    lengths = [tuple(float(len(response)) for response in one.responses) for one in held_out]
    return {
        "pair_accuracy": pair_accuracy(scored_comparisons(held_out, scores), rng).to_json(),
        "longer_wins": pair_accuracy(scored_comparisons(held_out, lengths), rng).to_json(),
        "folds": len(groups),
        "seed": seed,
    }


def deal_into_folds(names: set[str], folds: int, seed: str, what: str) -> list[set[str]]:
    """Return the names dealt at random into folds whose sizes differ by one at most."""
    if not 2 <= folds <= len(names):
        raise ValueError(f"{folds} folds of {len(names)} {what}; expected 2 to as many")
    order = sorted(names)
    random.Random(seed).shuffle(order)
    return [set(order[start::folds]) for start in range(folds)]


def _joined(parts: Sequence[Comparisons]) -> Comparisons:
    return Comparisons(
        np.concatenate([part.gap_N for part in parts]),
        np.concatenate([part.prompt_N for part in parts]),
        np.concatenate([part.same_model_N for part in parts]),
    )
