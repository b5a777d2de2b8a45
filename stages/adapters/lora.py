"""Low-rank adaptation (Hu et al. 2021), which is PEFT's own.

y = W x + alpha / rank * B A x
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear, LoraLayer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_models.model_files import first_line
from stages.adapters.config import LoRA


def create(model: PreTrainedModel, adaptation: LoRA, _: PreTrainedTokenizerBase) -> PeftModel:
    """Return the frozen model with a fresh adapter, which changes nothing until it is trained.

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
        return cast(PeftModel, get_peft_model(model, config))
    except ValueError as error:
        raise ValueError(f"adaptation.target_modules: {first_line(error)}") from None


def resume(model: PeftModel, adaptation: LoRA) -> None:
    """Check that the adapter of `model` has these settings, and change its dropout to theirs.

    Raises ValueError if it has another rank, alpha or other target modules; "all-linear" resumes
    those it has.
    """
    config = model.peft_config["default"]
    assert isinstance(config, LoraConfig)
    modules = sorted(config.target_modules or [])
    is_any = adaptation.target_modules == "all-linear"
    expected = modules if is_any else sorted(adaptation.target_modules)
    saved = (config.r, config.lora_alpha, modules)
    if saved != (adaptation.rank, adaptation.alpha, expected):
        raise ValueError(
            f"adaptation asks for rank {adaptation.rank}, alpha {adaptation.alpha} and "
            f"{expected}, the adapter to resume has {saved[0]}, {saved[1]} and "
            f"{modules}; use the same, or family full to merge it"
        )
    config.lora_dropout = adaptation.dropout
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_dropout["default"] = nn.Dropout(adaptation.dropout)


@contextmanager
def merged_lora(model: nn.Module) -> Iterator[None]:
    """Replace adapted layers by plain ones with the sum of base and adapter, to sample with.

    A token costs one product a layer instead of three. The base's own weights, which other models
    may share, are left alone, so afterwards every bit is as it was; meanwhile there is a copy of
    the adapted ones.
    """
    adapted = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, Linear)
    ]
    weights = [layer.get_base_layer().get_parameter("weight") for _, _, layer in adapted]
    try:
        for parent, name, layer in adapted:
            base = layer.get_base_layer()
            with torch.no_grad():
                weight = base.get_parameter("weight")
                total = (weight + layer.get_delta_weight("default")).to(weight.dtype)
            base.register_parameter("weight", nn.Parameter(total, requires_grad=False))
            parent.register_module(name, base)
        yield
    finally:
        for (parent, name, layer), weight in zip(adapted, weights, strict=True):
            layer.get_base_layer().register_parameter("weight", weight)
            parent.register_module(name, layer)
