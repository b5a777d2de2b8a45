"""Low-rank adaptation (Hu et al. 2021) through PEFT: a new adapter, or the one that is there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear, LoraLayer
from torch import nn
from transformers import PreTrainedModel

from reward_models.model_files import first_line
from stages.adapters.config import LoRA


def new_lora(model: PreTrainedModel, adaptation: LoRA) -> PreTrainedModel:
    """The frozen model with a fresh adapter, which changes nothing until it is trained.

    Raises ValueError where `target_modules` names nothing in the model.
    """
    config = LoraConfig(
        r=adaptation.rank,
        lora_alpha=cast(int, adaptation.alpha),  # a scale: PEFT only divides by the rank
        lora_dropout=adaptation.dropout,
        target_modules=adaptation.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        return cast(PreTrainedModel, get_peft_model(model, config))
    except ValueError as error:
        raise ValueError(f"adaptation.target_modules: {first_line(error)}") from None


def resume_lora(model: PeftModel, adaptation: LoRA) -> PreTrainedModel:
    """The model with its adapter trainable again, under the dropout of `adaptation`.

    Raises ValueError if the adapter has another rank, alpha or other target modules; "all-linear"
    goes on with those it has.
    """
    config = model.peft_config["default"]
    assert isinstance(config, LoraConfig)
    modules = sorted(config.target_modules or [])
    linear = adaptation.target_modules == "all-linear"
    wanted_modules = modules if linear else sorted(adaptation.target_modules)
    found = (config.r, config.lora_alpha, modules)
    if found != (adaptation.rank, adaptation.alpha, wanted_modules):
        raise ValueError(
            f"adaptation asks for rank {adaptation.rank}, alpha {adaptation.alpha} and "
            f"{wanted_modules}, the adapter to go on from has {found[0]}, {found[1]} and "
            f"{modules}; use the same, or family full to merge it"
        )
    config.lora_dropout = adaptation.dropout
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_dropout["default"] = nn.Dropout(adaptation.dropout)
    model.set_adapter("default")
    return cast(PreTrainedModel, model)


@contextmanager
def merged_lora(model: nn.Module) -> Iterator[None]:
    """Let plain layers with the sum of base and adapter stand in for a while, to sample with.

    A token costs one product a layer instead of three. The base's own weights, which other models
    may share, are left alone, so afterwards every bit is as it was; meanwhile there is a copy of
    the adapted ones.
    """
    found = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, Linear)
    ]
    kept = [layer.get_base_layer().get_parameter("weight") for _, _, layer in found]
    try:
        for parent, name, layer in found:
            base = layer.get_base_layer()
            with torch.no_grad():
                added = base.get_parameter("weight") + layer.get_delta_weight("default")
            base._parameters["weight"] = nn.Parameter(added, requires_grad=False)
            parent._modules[name] = base
        yield
    finally:
        for (parent, name, layer), weight in zip(found, kept, strict=True):
            layer.get_base_layer()._parameters["weight"] = weight
            parent._modules[name] = layer
