"""Adapters of any family on a frozen backbone, and several models on the same frozen weights.

    add_adapter(model, adaptation)   a fresh adapter, or the saved one, which resumes training
    copy_sharing_frozen(model)       the same model again, on the same frozen weights
    share_frozen(first, second)      one memory for the frozen weights that both have

Policy, reference, reward model and critic each have their own adapter and their own modules, and
the frozen weights are in memory once. No adapter is switched while a model is in use, so
recomputation, generation and compilation need no special case.

The module of a family has its name, and a function `create(model, adaptation, tokenizer)`. All are
imported here, so that PEFT can load what they saved.
"""

import copy
from importlib import import_module
from types import ModuleType
from typing import TypeVar, cast

import torch
from peft import PeftModel
from peft.utils import PeftType
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_models.backbone import adapter_parameters
from reward_models.weights.formats import quantised_state
from stages.adapters import lora
from stages.adapters.config import FAMILIES, LoRA, Restricted
from stages.adapters.registration import AdapterLayer

Module = TypeVar("Module", bound=nn.Module)

_MODULES: dict[str, ModuleType] = {
    name: import_module(f"stages.adapters.{name.replace('-', '_')}")
    for name, kind in FAMILIES.items()
    if issubclass(kind, Restricted)
}


def add_adapter(
    model: PreTrainedModel, adaptation: Restricted, tokenizer: PreTrainedTokenizerBase
) -> PeftModel:
    """Return the model with exactly the parameters of `adaptation` trainable.

    The adapter that a model already has resumes training. Raises ValueError if it is of another
    family or size.
    """
    if not isinstance(model, PeftModel):
        created = _MODULES[adaptation.family].create(model, adaptation, tokenizer)
        return cast(PeftModel, created)
    family = family_of(model)
    if family != adaptation.family:
        raise ValueError(
            f"adaptation.family is {adaptation.family}, the adapter to resume is of family "
            f"{family}; use the same, or family full to merge it where that is possible"
        )
    if isinstance(adaptation, LoRA):
        lora.resume(model, adaptation)
    saved = vars(model.peft_config["default"])
    for name, value in adaptation.fixed_settings().items():
        if value != saved[name]:
            raise ValueError(
                f"adaptation.{name} is {value}, the adapter to resume has {saved[name]}; "
                "use the same"
            )
    for layer in model.modules():
        if isinstance(layer, AdapterLayer):
            layer.set_dropout(adaptation.adapter_dropout)
    model.set_adapter("default")
    return model


def family_of(model: PeftModel) -> str:
    """Return the family of a model's adapter, by its name in configs."""
    name = PeftType(model.peft_config["default"].peft_type).name.lower().replace("_", "-")
    return "prompt" if name == "soft-prompt" else str(name)


def train_layers(model: PreTrainedModel, top: int | None) -> None:
    """Let all parameters move, or those of the `top` last layers alone.

    Layers below stay, and are shared between roles: no gradient goes below the lowest layer that
    moves. Embeddings, unembedding and final norm stay too. Raises ValueError where the model has
    fewer layers.
    """
    model.requires_grad_(top is None)
    if top is None:
        return
    layers = layers_of(model)
    if top > len(layers):
        raise ValueError(f"adaptation.top_layers is {top}, the model has {len(layers)} layers")
    for layer in list(layers)[-top:]:
        layer.requires_grad_(True)


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """Return the layers of a causal language model or of its transformer."""
    count = model.config.num_hidden_layers
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    assert len(stacks) == 1, "one stack of layers in a causal language model"
    return stacks[0]


def adapter_size(model: PeftModel) -> tuple[int, int]:
    """Return the numbers of parameters of the adapter and its base; a tied matrix counts once."""
    added = adapter_parameters(model)
    sizes = {id(parameter): parameter.numel() for parameter in model.parameters()}
    size = sum(numel for key, numel in sizes.items() if key in added)
    return size, sum(sizes.values()) - size


def trained_share(model: nn.Module, prefix: str) -> dict[str, float]:
    """Return two metrics: the number of trained parameters, and their share of the base's.

    A tied matrix counts once. A reward model's head counts as the base's.
    """
    added = adapter_parameters(model)
    unique = {id(p): p for p in model.parameters()}
    trained = sum(p.numel() for p in unique.values() if p.requires_grad)
    base = sum(p.numel() for key, p in unique.items() if key not in added)
    return {f"{prefix}trained_parameters": trained, f"{prefix}trained_share": trained / base}


def copy_sharing_frozen(model: Module) -> Module:
    """Return a copy with modules of its own on the same frozen parameters; others are copied."""
    frozen: list[object] = [p for p in model.parameters() if not p.requires_grad]
    return copy.deepcopy(model, {id(part): part for part in frozen + quantised_state(model)})


def share_frozen(first: nn.Module, second: nn.Module) -> None:
    """Replace the second model's frozen parameters by the first's where their numbers are equal.

    Two parameters of one model stay two, though all norms may begin as ones. Quantised matrices
    stay apart: their numbers mean nothing without the scales beside them.
    """
    already = {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
    free: dict[tuple[object, ...], list[nn.Parameter]] = {}
    for frozen in first.parameters():
        if _may_be_shared(frozen) and id(frozen) not in already:
            free.setdefault(_key(frozen), []).append(frozen)
    replaced: dict[int, nn.Parameter] = {}
    for module in second.modules():
        own = list(module.named_parameters(recurse=False, remove_duplicate=False))
        for name, parameter in own:
            if not _may_be_shared(parameter) or id(parameter) in already:
                continue
            if id(parameter) not in replaced:
                equal = free.get(_key(parameter), [])
                same = bool(equal) and torch.equal(equal[0], parameter)
                replaced[id(parameter)] = equal.pop(0) if same else parameter
            module.register_parameter(name, replaced[id(parameter)])


def _may_be_shared(parameter: nn.Parameter) -> bool:
    return parameter.is_floating_point() and not parameter.requires_grad


def _key(parameter: nn.Parameter) -> tuple[object, ...]:
    """Return what equal parameters share, and few others."""
    return (parameter.dtype, *parameter.shape, float(parameter.detach().sum(dtype=torch.float64)))
