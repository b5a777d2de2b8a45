"""Stage two: a reward model on rankings (Ouyang et al. 2022, section 3.5 and appendix C.2).

1. Rankings become batch elements, a share of the prompts is held out.
2. One pass over the rest, the learning rate on a cosine to 10 % without warm-up.
3. The bias is set so that demonstrations score 0 on average; where asked, scores get variance 1.
4. Held-out rankings tell how good the model is, beside how good the annotators let it be.

`out/` gets `model/`, `held_out.json` and, while it works, `checkpoints/` from which it goes on.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, assert_never

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, TrainingArguments

from reward_models.backbone import transformer
from reward_models.model import RewardModel
from reward_models.ranking_loss import keep_rankings, pool_pairs
from reward_models.records import Demonstration, Prompt, Ranking, RankingTask
from stages.adapters import config as families
from stages.adapters.backbone import trained_share
from stages.adapters.config import Probe
from stages.data.prompt_lengths import within_positions
from stages.generation.score import score_responses
from stages.models import adapt, load_policy, load_tokenizer, tell_of_experts, tokenizer_hash
from stages.progress import Report, Step, announce, counted
from stages.reward.batches import RankedPrompt, split_rankings
from stages.reward.config import RewardConfig
from stages.reward.frozen_states import layout_for
from stages.reward.held_out import Scores, held_out_report, score_elements
from stages.reward.micro_batches import cut_to_memory
from stages.reward.shared_prompt import Layout, SeparateRows, SharedPrompt, Weigh
from stages.reward.trainer import RewardTrainer
from stages.training_arguments import check_fsdp, num_ranks, training_arguments

logger = logging.getLogger(__name__)


def train_reward(
    config: RewardConfig,
    *,
    base: str | Path,
    tasks: Sequence[RankingTask],
    rankings: Sequence[Ranking],
    demonstrations: Sequence[Demonstration],
    out: Path,
    seed: int,
    report: Report,
) -> None:
    """Train on the rankings and write `out`; goes on from the last complete checkpoint in it.

    Without demonstrations the bias stays 0. Raises ValueError on rankings that do not fit their
    tasks, and where no prompt is left to learn from.
    """
    if config.scale == "demonstrations" and not demonstrations:
        raise ValueError("scale is 'demonstrations', but there are none; expected none or held_out")
    check_fsdp(config.adaptation, families.Prompt)
    tokenizer, config = load_tokenizer(base), within_positions(config, base)
    split = split_rankings(config, tokenizer, tasks, rankings, seed)
    train, held, left_out = split.train, split.held_out, split.left_out
    logger.info("%d prompts, %d held out; left out: %s", len(train), len(held), left_out)
    model = new_reward_model(config, base, seed)
    tell_of_experts(transformer(model.carrier))
    report(Step(0, 0, trained_share(model, "reward/"), "trying to compute each prompt once"))
    layout = layout_for(model, split.elements, out / "checkpoints")
    trainer = fit(
        config, model, train, layout, checkpoints=out / "checkpoints", seed=seed, report=report
    )
    kinds: set[str] = {ranking.kind for ranking in rankings}
    found = held_out_report(
        trainer.scorer, held, layout, rankings, kinds=kinds, seed=seed, report=report
    )
    shown = _scores(trainer.scorer, tokenizer, demonstrations, report)
    deviation = _deviation(config, shown, lambda: score_elements(trainer.scorer, held, layout))
    whole = trainer.whole(lambda: new_reward_model(config, base, seed))
    if whole is None or not trainer.is_world_process_zero():
        return
    found |= {"trained_prompts": len(train), "left_out": asdict(left_out), "seed": seed}
    announce(report, "writing the reward model")
    _finish(whole, tokenizer, kinds, deviation, shown)
    found |= {"demonstrations": len(demonstrations), "bias": whole.bias.item()}
    found |= {"scale": config.scale, "divided_by": whole.card.divided_by}
    whole.save(out / "model", tokenizer)
    _write_json(out / "held_out.json", found)


def new_reward_model(config: RewardConfig, base: str | Path, seed: int) -> RewardModel:
    """The base with a new head, and what `config.adaptation` lets move trainable."""
    if isinstance(config.adaptation, Probe):
        whole = load_policy(base)
        if isinstance(whole, PeftModel):
            raise ValueError(f"{base} is a set on a base; family probe needs the base itself")
        return RewardModel.probe(
            whole,
            seed,
            base=str(base),
            pooling=config.adaptation.pooling,
            inner_width=config.adaptation.width if config.adaptation.kind == "mlp" else 0,
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # new adapter weights are drawn from the global generator
        adapted = adapt(load_policy(base), config.adaptation)
    return RewardModel.on(adapted, seed, base=str(adapted.config.name_or_path))


def fit(
    config: RewardConfig,
    model: RewardModel,
    elements: Sequence[RankedPrompt],
    layout: Layout,
    *,
    checkpoints: Path,
    seed: int,
    report: Report,
) -> RewardTrainer:
    """Train `model` on the elements; the trainer knows how to score with it and how to save it."""
    arguments = _arguments(config, checkpoints, seed)
    if config.micro_prompts == "auto" and isinstance(layout, SharedPrompt | SeparateRows):
        announce(report, "measuring how many prompts fit into memory")
        cut_to_memory(arguments, model, layout, elements, checkpoints)
    trainer = RewardTrainer(model, arguments, elements, layout, _weigh(config), report)
    trainer.train(resume_from_checkpoint=trainer.newest_checkpoint())
    return trainer


def _arguments(config: RewardConfig, checkpoints: Path, seed: int) -> TrainingArguments:
    ranks = num_ranks()
    whole = max(config.prompts_per_batch // ranks, 1)
    micro = whole if config.micro_prompts == "auto" else config.micro_prompts
    if config.prompts_per_batch % (micro * ranks):
        raise ValueError(
            f"prompts_per_batch ({config.prompts_per_batch}) must be a multiple of micro_prompts "
            f"({micro}) times processes ({ranks})"
        )
    ours: dict[str, Any] = {
        "output_dir": str(checkpoints),
        "num_train_epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": config.prompts_per_batch // (micro * ranks),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_gradient_norm or 0.0,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "save_strategy": "steps",
        "save_steps": config.checkpoint_every,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "seed": seed,
    }
    defaults = {"report_to": "none", "dataloader_pin_memory": torch.cuda.is_available()}
    return training_arguments(TrainingArguments, ours, defaults | config.trainer)


def _weigh(config: RewardConfig) -> Weigh:
    match config.batch_element:
        case "prompt":
            return pool_pairs
        case "ranking":
            return keep_rankings
        case _:
            assert_never(config.batch_element)


def _deviation(
    config: RewardConfig, demonstrated: Sequence[float], held_out: Callable[[], Scores]
) -> float | None:
    """What scores are to be divided by, if by anything; scoring what is held out takes a pass."""
    match config.scale:
        case "none":
            return None
        case "demonstrations":
            return pstdev(demonstrated)
        case "held_out":
            return pstdev(score for row in held_out() for score in row)
        case _:
            assert_never(config.scale)


def _finish(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    kinds: set[str],
    deviation: float | None,
    demonstrated: Sequence[float],
) -> None:
    """Give scores their scale, and a bias with which demonstrations score 0 on average."""
    model.trained_on(tokenizer_hash(tokenizer), kinds)
    if deviation is not None:
        model.set_scale(deviation)
    if demonstrated:
        model.set_bias(fmean(demonstrated) / model.card.divided_by)


def _scores(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
    report: Report,
) -> list[float]:
    prompts = [
        Prompt(one.prompt, context=one.context, history=one.history) for one in demonstrations
    ]
    responses = [one.response for one in demonstrations]
    report = counted(report, "scoring demonstrations")
    return score_responses(model, tokenizer, prompts, responses, report=report)


def _write_json(path: Path, found: dict[str, Any]) -> None:
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    aside.replace(path)
