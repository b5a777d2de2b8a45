"""Activation checkpointing: layers keep their inputs alone, and compute the rest again.

transformers' own does so in training mode only, in which PPO never is, because what is off while
sampling must be off in training. This one goes by gradients: a layer that is called with gradients
is computed once more on the way back, whatever its mode. Gradients are the same, for a forward pass
more of time. Hooks of a layer, such as FSDP2's, stay outside and run once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from reward_models.backbone import transformer
from reward_models.model import RewardModel
from stages.adapters.backbone import layers_of
from stages.adapters.prefix_attention import is_capturing


def checkpoint_activations(model: nn.Module) -> None:
    """Let every layer of a model's transformer be computed again in the backward pass.

    A model without a transformer of its own, such as a value head, stays as it is. Copies are to be
    made before. ValueError where it is not clear which modules are the layers.
    """
    adapted = model.backbone if isinstance(model, RewardModel) else model
    if not isinstance(adapted, PreTrainedModel | PeftModel):
        return
    backbone = transformer(adapted)
    try:
        layers = layers_of(backbone)
    except (AssertionError, AttributeError):
        raise ValueError(
            f"activation_checkpointing is true, but {type(backbone).__name__} is not one stack of "
            "layers; expected false"
        ) from None
    for layer in layers:
        vars(layer)["forward"] = partial(_checkpointed, layer, layer.forward)


def _checkpointed(
    layer: nn.Module, forward: Callable[..., Any], *inputs: Any, **further: Any
) -> Any:
    """The layer's own forward pass, checkpointed where there are gradients and no KV cache.

    A prompt that is to become a prefix would later be computed with that prefix before it.
    """
    has_cache = further.get("past_key_values") is not None
    if not torch.is_grad_enabled() or has_cache or is_capturing():
        return forward(*inputs, **further)
    # Only dropout draws random numbers, and only in training mode.
    return checkpoint(
        forward, *inputs, use_reentrant=False, preserve_rng_state=layer.training, **further
    )
