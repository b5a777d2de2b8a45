"""Stage one: fine-tuning on demonstrations (Ouyang et al. 2022, section 3.5 and appendix C.1).

    loss = - sum over response tokens of log p(token | prompt, earlier tokens) / their count

counted over the whole batch, across ranks and micro-batches. The learning rate falls along a cosine
to a tenth of its peak, without warm-up; Adam's betas are the paper's (0.9, 0.95). The paper does
not name weight decay, Adam's epsilon (1e-8 here) and the gradient's norm limit (1.0 here).
Training is TRL's SFTTrainer, see `stages/sft/trainer.py`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.sft_config import SFTConfig as SFTArguments

from reward_models.compat import attention_implementation
from reward_models.context_limit import ContextLimit
from reward_models.records import Demonstration, Prompt
from stages.adapters import config as families
from stages.adapters.backbone import trained_share
from stages.data.streams import PretrainingStream
from stages.data.supervised import Example, encode
from stages.distributed.activation_checkpointing import checkpoint_activations
from stages.distributed.optimizers import AdamKind
from stages.models import adapt, device, load_policy, load_tokenizer, log_router_loss
from stages.precision import resolved
from stages.progress import Report, Step, silent
from stages.prompt_lengths import adapted_context_limit
from stages.sft.config import SFTConfig, SupervisedMix
from stages.sft.selection import CHECKPOINTS, choose_epoch, drop_resume_state, epoch_checkpoints
from stages.sft.trainer import SupervisedTrainer
from stages.training_arguments import (
    check_fsdp,
    computing_in_engine,
    num_ranks,
    precision_arguments,
    training_arguments,
)


def train_sft(
    config: SFTConfig,
    *,
    base: str | Path,
    demonstrations: Sequence[Demonstration],
    validation: Sequence[Demonstration] = (),
    reward_model: Path | None = None,
    selection_prompts: Sequence[Prompt] = (),
    out: Path,
    seed: int,
    report: Report = silent,
    pretraining: Path | None = None,
) -> None:
    """Fine-tune `base` and leave the best epoch in out/model, the choice in out/selection.json.

    `pretraining` is a file of texts, given if and only if `config.pretraining` is set.
    Resumes from the last complete epoch in out/checkpoints, with the numbers of an unbroken run.
    Demonstrations longer than `max_tokens`, or than the model has positions for, are left out and
    counted in `sft/left_out`; ValueError where none is left, or where the settings do not fit each
    other, the model or the processes.
    """
    if config.result == "best" and config.epochs > 1 and not validation and reward_model is None:
        raise ValueError(
            f"{config.epochs} epochs to choose from but nothing to choose by: expected validation "
            "demonstrations or a reward model"
        )
    check_fsdp(config.adaptation, families.Prompt, families.Probe)
    arguments = _arguments(config, out / CHECKPOINTS, seed, validated=bool(validation))
    tokenizer = load_tokenizer(base)
    limit = adapted_context_limit(base, config.adaptation)
    examples = _fitting(tokenizer, demonstrations, config.max_tokens, limit)
    held_out = _fitting(tokenizer, validation, config.max_tokens, limit) if validation else []
    mixed: list[Example] = []
    _require_both(config.pretraining, pretraining)
    if config.pretraining is not None and pretraining is not None:
        limit.require(config.pretraining.tokens_per_example, "pretraining.tokens_per_example")
        mixed = pretraining_examples(config.pretraining, pretraining, tokenizer, examples, seed)
    model = trained_model(config, base, seed)
    counts = {
        "sft/left_out": len(demonstrations) + len(validation) - len(examples) - len(held_out),
        "sft/pretraining_examples": len(mixed),
    }
    report(Step(0, 0, counts | trained_share(model, "sft/")))
    kind = AdamKind(config.optimizer, config.precision.masters, seed)
    weights = resolved(config.precision, device()).of(config.adaptation)
    trainer = SupervisedTrainer.on(
        model, tokenizer, arguments, examples + mixed, held_out, report, kind, weights
    )
    trainer.train_remaining(config.epochs)
    if trainer.is_world_process_zero():
        choose_epoch(
            out,
            reward_model=reward_model,
            selection_prompts=selection_prompts,
            sampling=config.selection,
            out=out,
            seed=seed,
            report=report,
            last=config.result == "last",
            precision=config.precision,
        )
        for checkpoint in epoch_checkpoints(out / CHECKPOINTS):
            drop_resume_state(checkpoint)
    trainer.accelerator.wait_for_everyone()


def _require_both(setting: SupervisedMix | None, texts: Path | None) -> None:
    """Raise ValueError for a mix without texts, or texts without a mix."""
    if (setting is None) != (texts is None):
        raise ValueError(
            "pretraining is set, but there are no pretraining texts to read"
            if texts is None
            else "pretraining texts are given, but pretraining is not set: they had no effect"
        )


def trained_model(config: SFTConfig, base: str | Path, seed: int) -> PreTrainedModel:
    """Return the base with the parameters of `config.adaptation` trainable."""
    torch.manual_seed(seed)
    weights = resolved(config.precision, device()).of(config.adaptation)
    with attention_implementation(config.attn_implementation):
        policy = load_policy(base, dropout=config.dropout, weights=weights)
    model = adapt(policy, config.adaptation)
    log_router_loss(model)
    if config.activation_checkpointing:
        checkpoint_activations(model)
    return model


def _arguments(config: SFTConfig, checkpoints: Path, seed: int, *, validated: bool) -> SFTArguments:
    processes, numerics = num_ranks(), resolved(config.precision, device())
    micro = config.micro_batch_size or max(1, config.batch_size // processes)
    if config.batch_size % (micro * processes):
        raise ValueError(
            f"batch_size ({config.batch_size}) must be a multiple of micro_batch_size ({micro}) "
            f"times the number of processes ({processes})"
        )
    ours = {
        "output_dir": str(checkpoints),
        "num_train_epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "warmup_steps": 0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "weight_decay": config.weight_decay,
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": config.batch_size // (micro * processes),
        "router_aux_loss_coef": 0.0,  # only the loss of the responses is trained
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "remove_unused_columns": False,
        "eval_strategy": "epoch" if validated else "no",
        "save_strategy": "epoch",
        "seed": seed,
        "data_seed": seed,
        "disable_tqdm": True,
        "activation_checkpointing": False,  # `checkpoint_activations` does it
        **precision_arguments(numerics, config.adaptation),
    }
    defaults: dict[str, object] = {  # which `trainer:` may change
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    arguments = training_arguments(SFTArguments, ours, defaults | config.trainer)
    return computing_in_engine(arguments, numerics, config.adaptation)


def _fitting(
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
    max_tokens: int,
    limit: ContextLimit,
) -> list[Example]:
    encoded = [encode(tokenizer, demonstration) for demonstration in demonstrations]
    most = limit.at_most(max_tokens)
    fitting = [example for example in encoded if len(example.ids) <= most]
    if not fitting:
        shortest = min((len(example.ids) for example in encoded), default=0)
        expected = f"max_tokens ({max_tokens}) tokens"
        if most < max_tokens:
            expected = f"{most} tokens, for which {limit.model} has positions"
        raise ValueError(
            f"none of {len(encoded)} demonstrations has at most {expected}; "
            f"the shortest has {shortest}"
        )
    return fitting


def pretraining_examples(
    mix: SupervisedMix,
    texts: Path,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Example],
    seed: int,
) -> list[Example]:
    """Return so many that they are `mix.share` of all; every token but the first carries loss.

    The paper mixes in 10 % of pretraining data and does not say of what; here it is a share of the
    examples, which is what GPT-3's "weight in training mix" counts (Brown et al. 2020, table 2.2).
    `texts` are JSON lines {"text": ...}; ValueError where they are too short for one block.
    """
    count = max(1, round(len(demonstrations) * mix.share / (1.0 - mix.share)))
    stream = PretrainingStream(texts, tokenizer, mix.tokens_per_example, pack=mix.pack, seed=seed)
    ids_BL, mask_BL = stream.next(count)
    rows = zip(ids_BL.tolist(), mask_BL.sum(-1).tolist(), strict=True)
    return [Example(row[:tokens], response_start=1) for row, tokens in rows]
