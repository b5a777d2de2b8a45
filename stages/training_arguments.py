"""TrainingArguments from a stage's settings and the further ones under its `trainer:` key."""

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch.optim import Optimizer
from transformers import TrainingArguments

from reward_models.model_files import first_line
from stages.adapters.config import Full, Restricted
from stages.distributed.compat import autocast_settings
from stages.distributed.optimizers import AdamKind
from stages.distributed.state import let_models_load_whole
from stages.precision import Numerics

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def training_arguments(
    kind: type[Arguments], ours: Mapping[str, Any], further: Mapping[str, Any]
) -> Arguments:
    """Return both together; ValueError where `further` has an unknown key, or one of the stage's.

    Also where the processes that were started did not find one another.
    """
    known = {field.name for field in fields(kind) if field.init}
    for name in further:
        if name not in known:
            raise ValueError(f"trainer.{name} is not a training argument of {kind.__name__}")
        if name in ours:
            raise ValueError(
                f"trainer.{name} is set by the stage itself; use the stage's own settings"
            )
    try:
        arguments = kind(**ours, **further)
    except (TypeError, ValueError) as error:
        raise ValueError(f"trainer: {first_line(error)}") from None
    if arguments.world_size != num_ranks():
        raise ValueError(
            f"{num_ranks()} processes were started, but {arguments.world_size} found one another; "
            "start them with --processes, or with accelerate launch"
        )
    let_models_load_whole()
    return arguments


def precision_arguments(numerics: Numerics, adaptation: Full | Restricted) -> dict[str, bool]:
    """Return the arguments by which Trainer computes in a stage's precision.

    Without them accelerate would take what a launcher, or an earlier stage, left in the
    environment.
    """
    mixed = numerics.mixed_precision(numerics.of(adaptation))
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" and mixed == "bf16":
        mixed = "no"  # its own narrows the weights themselves; see `computing_in_engine`
    os.environ["ACCELERATE_MIXED_PRECISION"] = mixed
    on_cpu = not torch.accelerator.is_available()
    return {"bf16": mixed == "bf16", "fp16": mixed == "fp16"} | (
        {"use_cpu": True} if on_cpu and mixed != "no" else {}
    )


def computing_in_engine(
    arguments: Arguments, numerics: Numerics, adaptation: Full | Restricted
) -> Arguments:
    """Let DeepSpeed's engine, where there is one, compute under autocast on float32 weights."""
    plugin = arguments.deepspeed_plugin
    if plugin is not None and numerics.mixed_precision(numerics.of(adaptation)) == "bf16":
        plugin.deepspeed_config |= autocast_settings(numerics.compute)
    return arguments


def trainer_optimizer(
    kind: AdamKind, arguments: TrainingArguments
) -> tuple[type[Optimizer], dict[str, Any]] | None:
    """Return Trainer's `optimizer_cls_and_kwargs`; None for the one that `arguments` name.

    ValueError where moments are sharded.
    """
    if kind.is_plain:
        return None
    for variable, sharding in (("FSDP", "fsdp2"), ("DEEPSPEED", "zero")):
        if os.environ.get(f"ACCELERATE_USE_{variable}") == "true":
            kind.require_plain(sharding)
    optimizer, own = kind.class_and_settings(fused=True)
    return optimizer, {
        "lr": arguments.learning_rate,
        "betas": (arguments.adam_beta1, arguments.adam_beta2),
        "eps": arguments.adam_epsilon,
        "weight_decay": arguments.weight_decay,
        **own,
    }


def num_ranks() -> int:
    """Return the number of processes that a launcher started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_fsdp(adaptation: Full | Restricted, *unfit: type[Restricted]) -> None:
    """Raise ValueError where FSDP2 would shard a family whose layers run outside its hooks."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and isinstance(adaptation, unfit):
        raise ValueError(
            f"adaptation.family {adaptation.family} does not train under sharding fsdp2 in this "
            "stage; expected zero1, zero2, zero3 or ddp"
        )
