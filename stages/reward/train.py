"""Stage two: a reward model on rankings (Ouyang et al. 2022, section 3.5 and appendix C.2).

1. Rankings become batch elements, a share of the prompts is held out.
2. One epoch over the rest, the learning rate on a cosine to 10 % without warm-up.
3. The bias is set so that demonstrations score 0 on average; where asked, scores get variance 1.
4. Held-out rankings measure the model, beside the agreement of the annotators among themselves.

`out/` gets `model/`, `held_out.json` and, meanwhile, `checkpoints/` from which a run resumes.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from reward_models.atomic_files import write_json
from reward_models.backbone import transformer
from reward_models.compat import attention_implementation
from reward_models.model import RewardModel
from reward_models.records import Demonstration, Prompt, Ranking, RankingTask, Use
from stages.adapters import config as families
from stages.adapters.backbone import trained_share
from stages.distributed.activation_checkpointing import checkpoint_activations
from stages.distributed.checkpoints import last_checkpoint
from stages.distributed.memory import USED, Cost, cost_of, free_memory, usable
from stages.distributed.optimizers import AdamKind
from stages.generation.score import score_responses
from stages.models import (
    adapt,
    device,
    load_policy,
    load_tokenizer,
    log_router_loss,
    tokenizer_hash,
)
from stages.precision import resolved
from stages.progress import Report, Step, announce, counted, silent
from stages.prompt_lengths import adapted_context_limit
from stages.reward.batches import RankedPrompt, split_rankings
from stages.reward.config import RewardConfig
from stages.reward.held_out import held_out_report, score_elements
from stages.reward.shared_prompt import Inputs, Layout, SeparateRows, SharedPrompt, cached_layout
from stages.reward.trainer import RewardTrainer
from stages.training_arguments import (
    check_fsdp,
    computing_in_engine,
    num_ranks,
    precision_arguments,
    training_arguments,
)

log = logging.getLogger(__name__)


def train_reward(
    config: RewardConfig,
    *,
    base: str | Path,
    tasks: Sequence[RankingTask],
    rankings: Sequence[Ranking],
    demonstrations: Sequence[Demonstration] = (),
    out: Path,
    seed: int,
    report: Report = silent,
    use: Use = "both",
) -> None:
    """Train on the rankings and write `out`; resumes from the last complete checkpoint in it.

    Without demonstrations the bias stays 0. Raises ValueError on rankings that do not fit their
    tasks, and where no prompt is left to train on.
    """
    if config.scale == "demonstrations" and not demonstrations:
        raise ValueError("scale is 'demonstrations', but there are none; expected none or held_out")
    check_fsdp(config.adaptation, families.Prompt)
    tokenizer, config = load_tokenizer(base), within_positions(config, base)
    split = split_rankings(config, tokenizer, tasks, rankings, seed, use)
    log.info(
        "%d prompts, %d held out; left out: %s",
        *(len(split.train), len(split.held_out), split.left_out),
    )
    model = new_reward_model(config, base, seed)
    log_router_loss(transformer(model.backbone))
    report(Step(0, 0, trained_share(model, "reward/"), "trying to compute each prompt once"))
    checkpoints = out / "checkpoints"
    layout = cached_layout(model, split.elements, checkpoints)
    trainer = fit(
        config, model, split.train, layout, checkpoints=checkpoints, seed=seed, report=report
    )
    mix = label_mix(rankings, use)
    results = held_out_report(
        trainer.scorer, split.held_out, layout, rankings, mix=mix, seed=seed, report=report
    )
    scores = _demonstration_scores(trainer.scorer, tokenizer, demonstrations, report)
    deviation = None
    if config.scale == "demonstrations":
        deviation = pstdev(scores)
    elif config.scale == "held_out":
        held_out = score_elements(trainer.scorer, split.held_out, layout)
        deviation = pstdev(score for row in held_out for score in row)
    whole = trainer.whole(lambda: new_reward_model(config, base, seed))
    if whole is None or not trainer.is_world_process_zero():
        return
    announce(report, "writing the reward model")
    whole.record_training(tokenizer_hash(tokenizer), set(mix))
    if deviation is not None:
        whole.set_scale(deviation)
    if scores:
        whole.set_bias(fmean(scores) / whole.card.divided_by)
    whole.save(out / "model", tokenizer)
    results |= {
        "trained_prompts": len(split.train),
        "left_out": asdict(split.left_out),
        "seed": seed,
        "demonstrations": len(demonstrations),
        "bias": whole.bias.item(),
        "scale": config.scale,
        "divided_by": whole.card.divided_by,
    }
    write_json(out / "held_out.json", results)


def label_mix(rankings: Iterable[Ranking], use: Use) -> dict[str, int]:
    """Return the number of rankings of each kind among those that this use trains on."""
    kinds = Counter[str](ranking.kind for ranking in rankings)
    omitted = {"people": {"judge"}, "judges": set(kinds) - {"judge"}, "both": set()}[use]
    return {kind: kinds[kind] for kind in sorted(kinds) if kind not in omitted}


def within_positions(config: RewardConfig, source: str | Path) -> RewardConfig:
    """Return the settings with a `max_tokens` that the model on this base has positions for."""
    limit = adapted_context_limit(source, config.adaptation)
    return config.model_copy(update={"max_tokens": limit.at_most(config.max_tokens)})


def new_reward_model(config: RewardConfig, base: str | Path, seed: int) -> RewardModel:
    """Return the base with a new head, and the parameters of `config.adaptation` trainable."""
    weights = resolved(config.precision, device()).of(config.adaptation)
    attention = attention_implementation(config.attn_implementation)
    if isinstance(config.adaptation, families.Probe):
        with attention:
            whole = load_policy(base, weights=weights)
        if isinstance(whole, PeftModel):
            raise ValueError(f"{base} is an adapter on a base; family probe needs the base itself")
        return RewardModel.probe(
            whole,
            seed,
            base=str(base),
            pooling=config.adaptation.pooling,
            inner_width=config.adaptation.width if config.adaptation.kind == "mlp" else 0,
        )
    with torch.random.fork_rng(), attention:
        torch.manual_seed(seed)  # new adapter weights are drawn from the global generator
        adapted = adapt(load_policy(base, weights=weights), config.adaptation)
    model = RewardModel.on(adapted, seed, base=str(adapted.config.name_or_path))
    if config.activation_checkpointing:
        checkpoint_activations(model)
    return model


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
    """Train `model` on the elements and return its trainer, which scores with it and saves it."""
    arguments = _arguments(config, checkpoints, seed)
    if config.micro_prompts == "auto" and isinstance(layout, SharedPrompt | SeparateRows):
        announce(report, "measuring how many prompts fit into memory")
        fit_to_memory(arguments, model, layout, elements, checkpoints)
    kind = AdamKind(config.optimizer, config.precision.masters, seed)
    trainer = RewardTrainer(model, arguments, elements, layout, config.batch_element, report, kind)
    trainer.train(resume_from_checkpoint=trainer.newest_checkpoint())
    return trainer


def _arguments(config: RewardConfig, checkpoints: Path, seed: int) -> TrainingArguments:
    ranks, numerics = num_ranks(), resolved(config.precision, device())
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
        "activation_checkpointing": False,  # `checkpoint_activations` does it
        "seed": seed,
        **precision_arguments(numerics, config.adaptation),
    }
    defaults = {"report_to": "none", "dataloader_pin_memory": torch.cuda.is_available()}
    arguments = training_arguments(TrainingArguments, ours, defaults | config.trainer)
    return computing_in_engine(arguments, numerics, config.adaptation)


def fit_to_memory(
    arguments: TrainingArguments,
    model: RewardModel,
    layout: SharedPrompt | SeparateRows,
    elements: Sequence[RankedPrompt],
    checkpoints: Path,
) -> None:
    """Cut the batch of `arguments` into micro-batches that every rank has memory for.

    A resumed run has micro-batches of at most the size before, so that it ends with the same bits.
    """
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    try:
        cost = forward_backward_cost(model, layout, elements)
    except RuntimeError as error:
        log.warning("every micro-batch is a whole batch, fitting or not: %s", error)
        return
    free, reserved = free_memory(arguments.device), _bytes_to_come(arguments, model)
    fits = cost.rows(usable(free, reserved))
    if fits < 1:
        needed = cost.bytes(1) / USED + reserved
        log.warning(
            "memory may not suffice: %.3g GiB is free, and one prompt's responses need %.3g GiB",
            *(free / 2**30, needed / 2**30),
        )
    if newest := last_checkpoint(checkpoints):
        before = TrainerState.load_from_json(str(newest / TRAINER_STATE_NAME)).train_batch_size
        fits = min(fits, before or batch)
    sizes = [size for size in range(1, batch + 1) if batch % size == 0 and size <= fits]
    agreed = min(gather_object([max(sizes, default=1)]))
    arguments.per_device_train_batch_size = agreed
    arguments.gradient_accumulation_steps = batch // agreed


def forward_backward_cost(
    model: RewardModel, layout: SharedPrompt | SeparateRows, elements: Sequence[RankedPrompt]
) -> Cost:
    """Return the memory that a prompt takes, the longest with its responses, by a dry run.

    Raises RuntimeError where the model computes with numbers, which a dry run does not have.
    """
    longest = max(elements, key=lambda element: element.row_tokens)

    def work_on(prompts: int) -> Callable[[], None]:
        return partial(forward_backward, model, layout.inputs(layout.collate([longest] * prompts)))

    return cost_of(work_on)


def forward_backward(model: RewardModel, inputs: Inputs) -> None:
    """Compute gradients and drop them."""
    try:
        torch.autograd.backward(model(*inputs).sum())
    finally:
        model.zero_grad(set_to_none=True)


def _bytes_to_come(arguments: TrainingArguments, model: RewardModel) -> int:
    """Return the bytes that are not on the device yet, activations aside.

    Adam's moments, the buckets in which ranks add up gradients, and on a GPU the model itself.
    """
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    copies = 2 + (arguments.world_size > 1)
    weights = sum(size for size, _ in sizes) if arguments.device.type == "cuda" else 0
    return int(weights + copies * sum(size for size, is_trained in sizes if is_trained))


def _demonstration_scores(
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
