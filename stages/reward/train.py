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
from functools import partial
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, assert_never

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from reward_models.backbone import transformer
from reward_models.model import RewardModel
from reward_models.ranking_loss import keep_rankings, pool_pairs
from reward_models.records import Demonstration, Prompt, Ranking, RankingTask
from stages.adapters import config as families
from stages.adapters.backbone import trained_share
from stages.adapters.config import Probe
from stages.distributed.checkpoints import last_checkpoint
from stages.distributed.memory import USED, Cost, cost_of, free_memory, usable
from stages.generation.score import score_responses
from stages.models import adapt, load_policy, load_tokenizer, log_router_loss, tokenizer_hash
from stages.progress import Report, Step, announce, counted
from stages.prompt_lengths import adapted_context_limit
from stages.reward.batches import RankedPrompt, split_rankings
from stages.reward.config import RewardConfig
from stages.reward.held_out import Scores, held_out_report, score_elements
from stages.reward.shared_prompt import (
    Inputs,
    Layout,
    SeparateRows,
    SharedPrompt,
    Weigh,
    cached_layout,
    unweighted,
)
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
    log_router_loss(transformer(model.backbone))
    report(Step(0, 0, trained_share(model, "reward/"), "trying to compute each prompt once"))
    layout = cached_layout(model, split.elements, out / "checkpoints")
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


def within_positions(config: RewardConfig, source: str | Path) -> RewardConfig:
    """The settings with a `max_tokens` that the model on this base has positions for."""
    limit = adapted_context_limit(source, config.adaptation)
    return config.model_copy(update={"max_tokens": limit.at_most(config.max_tokens)})


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


log = logging.getLogger(__name__)


def cut_to_memory(
    arguments: TrainingArguments,
    model: RewardModel,
    layout: SharedPrompt | SeparateRows,
    elements: Sequence[RankedPrompt],
    checkpoints: Path,
) -> None:
    """Cut the batch of `arguments` into micro-batches that every rank has memory for.

    A run that goes on reads at most as many at once as before, so that it ends with the same bits.
    """
    share = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    try:
        cost = reading_cost(model, layout, elements)
    except RuntimeError as error:
        log.warning("every micro-batch is a whole batch, fitting or not: %s", error)
        return
    free, to_come = free_memory(arguments.device), _to_come(arguments, model)
    fits = min(cost.rows(usable(free, to_come)), _before(checkpoints) or share)
    if fits < 1:
        needed = cost.bytes(1) / USED + to_come
        log.warning(
            "memory may not suffice: %.3g GiB is free, and one prompt's responses need %.3g GiB",
            *(free / 2**30, needed / 2**30),
        )
    found = [size for size in range(1, share + 1) if share % size == 0 and size <= fits]
    agreed = min(gather_object([max(found, default=1)]))
    arguments.per_device_train_batch_size = agreed
    arguments.gradient_accumulation_steps = share // agreed


def reading_cost(
    model: RewardModel, layout: SharedPrompt | SeparateRows, elements: Sequence[RankedPrompt]
) -> Cost:
    """Of a pass back and forth over a prompt, the longest with its responses.

    Raises RuntimeError where the model computes with numbers, which a dry run does not have.
    """
    longest = max(elements, key=lambda element: element.row_tokens)

    def work_on(prompts: int) -> Callable[[], None]:
        batch = layout.collate([longest] * prompts, unweighted)
        return partial(pass_over, model, layout.inputs(batch))

    return cost_of(work_on)


def pass_over(model: RewardModel, inputs: Inputs) -> None:
    """Back and forth; the gradients are lost."""
    try:
        torch.autograd.backward(model(*inputs).sum())
    finally:
        model.zero_grad(set_to_none=True)


def _to_come(arguments: TrainingArguments, model: RewardModel) -> int:
    """Bytes that are not on the device yet, passes aside.

    Adam's moments, the buckets in which ranks add up gradients, and on a GPU the model itself.
    """
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    copies = 2 + (arguments.world_size > 1)
    weights = sum(size for size, _ in sizes) if arguments.device.type == "cuda" else 0
    moved = sum(size for size, moves in sizes if moves)
    return int(weights + copies * moved)


def _before(checkpoints: Path) -> int | None:
    """What a run that was cut off read at once."""
    newest = last_checkpoint(checkpoints)
    if newest is None:
        return None
    state = TrainerState.load_from_json(str(newest / TRAINER_STATE_NAME))
    found: int | None = state.train_batch_size
    return found
