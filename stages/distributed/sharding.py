"""The choice of how a network is held by the ranks: replicated, by DeepSpeed's ZeRO, or by FSDP2.

    Replicated  AdamW on this rank's parameters; ranks add up their gradients
    Zero        a DeepSpeed engine: optimiser states (1), gradients (2) and weights (3) are sharded
    Fsdp2       torch's fully_shard: weights, gradients and optimiser states are sharded

The launcher sets it (`pipeline/launch`), and accelerate reads it from the environment.
"""

import os
from collections.abc import Mapping
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from peft import PeftModel
from torch import nn

from stages.adapters.backbone import family_of
from stages.distributed.network import Network, Replicated
from stages.distributed.optimizers import PLAIN, AdamKind
from stages.distributed.state import (
    gather_moments,
    gather_weights,
    scatter_moments,
    scatter_weights,
)


def sharding(accelerator: Accelerator) -> Literal["none", "zero", "fsdp2"]:
    """The sharding that the launcher set."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return "zero"
    # On a CPU accelerate itself would fall back to plain copies.
    return "fsdp2" if os.environ.get("ACCELERATE_USE_FSDP") == "true" else "none"


def sharded_network(
    model: nn.Module,
    max_gradient_norm: float | None,
    accelerator: Accelerator,
    kind: AdamKind = PLAIN,
    autocast: torch.dtype | None = None,
) -> Network:
    """Wrap a model to be trained as the launcher shards it.

    `autocast` is the dtype of that around the model's passes, which an engine would switch off.
    """
    how = sharding(accelerator)
    if how != "none":
        kind.require_plain(how)
    match how:
        case "none":
            return Replicated(model, max_gradient_norm, accelerator, kind)
        case "zero":
            from stages.distributed.zero import Zero

            return Zero(model, max_gradient_norm, accelerator, autocast)
        case "fsdp2":
            from stages.distributed.fsdp2 import Fsdp2

            _require_fits_fsdp2(model)
            return Fsdp2(model, max_gradient_norm, accelerator)


def shard_frozen(model: nn.Module, accelerator: Accelerator) -> None:
    """Shard a frozen model's weights where those of trained ones are."""
    match sharding(accelerator):
        case "none":
            pass
        case "zero":
            from stages.distributed.zero import shard_weights

            shard_weights(model, accelerator)
        case "fsdp2":
            from stages.distributed.fsdp2 import shard_layers

            shard_layers(model, accelerator)


def load_models_whole(accelerator: Accelerator) -> None:
    """Let any rank load models whole from now on, to be adapted and sharded later.

    Under ZeRO-3, transformers would shard them as it loads, which takes all ranks.
    """
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        plugin.dschf = None  # transformers knows of DeepSpeed as long as this lives


def network_state(network: Network) -> dict[str, Any]:
    """Weights and moments, full and by name, on the first rank; every rank must call."""
    return {
        "weights": gather_weights(network.parameters),
        "moments": gather_moments(network.parameters, network.optimizer),
    }


def load_network_state(network: Network, state: Mapping[str, Any]) -> None:
    """Restore what `network_state` returned, however that network was sharded; every rank calls."""
    scatter_weights(network.parameters, state["weights"])
    scatter_moments(network.parameters, network.optimizer, state["moments"])


def _require_fits_fsdp2(model: nn.Module) -> None:
    if any(isinstance(m, PeftModel) and family_of(m) == "prompt" for m in model.modules()):
        raise ValueError(
            "family prompt does not work with --sharding fsdp2: its embeddings pass through layers "
            "outside the layers' own turn; use ddp, zero1, zero2 or zero3"
        )
