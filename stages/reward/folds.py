"""What folds say about a reward model, as files beside it: annotators, or prompts, left out."""

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from reward_models.calibration import Comparisons, pair_accuracy
from reward_models.records import Ranking, RankingTask
from stages.models import load_tokenizer
from stages.progress import Report, part_of
from stages.reward.batches import RankedPrompt, split_rankings
from stages.reward.config import RewardConfig
from stages.reward.held_out import score_elements, scored_comparisons
from stages.reward.shared_prompt import cached_layout, choose_layout
from stages.reward.train import fit, new_reward_model


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
        inside.append(scored_comparisons(held, scores, others))
        outside.append(scored_comparisons(held, scores, group))
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

    `states` is a folder where a probe's states may lie (see `stages.reward.shared_prompt`). Raises
    ValueError with fewer prompts than folds.
    """
    elements = split_rankings(config, load_tokenizer(base), tasks, rankings, seed).elements
    groups = prompt_groups(elements, folds, seed)
    layout = cached_layout(new_reward_model(config, base, seed), elements, states)
    held, scores = [], []
    for number, group in enumerate(groups):
        trainer = fit(
            config,
            new_reward_model(config, base, seed),
            [element for element in elements if element.conversation not in group],
            layout,
            checkpoints=work / f"fold-{number}",
            seed=seed,
            report=part_of(report, number, folds, "prompt fold"),
        )
        mine = [element for element in elements if element.conversation in group]
        held += mine
        scores += score_elements(trainer.scorer, mine, layout)
    rng = np.random.default_rng(seed)
    tokens = [tuple(float(len(response)) for response in one.responses) for one in held]
    return {
        "pair_accuracy": pair_accuracy(scored_comparisons(held, scores), rng).to_json(),
        "longer_wins": pair_accuracy(scored_comparisons(held, tokens), rng).to_json(),
        "folds": folds,
        "seed": seed,
    }


def prompt_groups(elements: Sequence[RankedPrompt], folds: int, seed: int) -> list[set[str]]:
    """What was said in each fold: dealt at random, sizes differing by one prompt at most."""
    prompts = sorted({element.conversation for element in elements})
    if not 2 <= folds <= len(prompts):
        raise ValueError(f"{folds} folds of {len(prompts)} prompts; expected 2 to as many")
    random.Random(f"prompt folds {seed}").shuffle(prompts)
    return [set(prompts[start::folds]) for start in range(folds)]


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
) -> None:
    """Write into `out` those folds that the config asks for; what is trained for them goes.

    Their curves are not the reward model's: only how far they are is told.
    """
    work = out / "folds.work"
    if config.annotator_folds is not None:
        found = accuracy_on_unseen_annotators(
            config,
            config.annotator_folds,
            base=base,
            tasks=tasks,
            rankings=rankings,
            work=work,
            seed=seed,
            report=report,
        )
        _write(out / ANNOTATOR_FOLDS, found, work)
    if config.prompt_folds is not None:
        found = accuracy_over_all_prompts(
            config,
            config.prompt_folds,
            base=base,
            tasks=tasks,
            rankings=rankings,
            states=out / "checkpoints",
            work=work,
            seed=seed,
            report=report,
        )
        _write(out / PROMPT_FOLDS, found, work)


def _write(path: Path, found: Mapping[str, Any], work: Path) -> None:
    if PartialState().is_main_process:
        aside = path.with_name(path.name + ".part")
        aside.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        aside.replace(path)
        shutil.rmtree(work)
