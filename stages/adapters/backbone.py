"""A set of any family on a frozen model: a fresh one, or the one that is there already.

    restrict(model, adaptation)   what a stage calls before it trains
    twin(model)                   the same model again, on the same frozen weights
    share_frozen(first, second)   one memory for the frozen weights that two models have in common

One trunk carries as many sets as there are roles: policy, reference, reward model and critic each
have their own set and their own modules, and the frozen weights are in memory once. Nothing is
switched, so recomputation, generation and compilation see what they saw.
"""

import copy
from typing import TypeVar, cast

import torch
from peft import PeftModel
from peft.utils import PeftType
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_models.backbone import adapter_parameters
from stages.adapters.bitfit import BitFitConfig, new_bitfit
from stages.adapters.bottleneck import BottleneckConfig, new_bottleneck, set_dropout
from stages.adapters.config import (
    BitFit,
    Bottleneck,
    LoRA,
    Prefix,
    Probe,
    Prompt,
    PTuningV2,
    Restricted,
    dropout_of,
)
from stages.adapters.lora import new_lora, resume_lora
from stages.adapters.prefix import PrefixConfig, PTuningV2Config, new_prefix
from stages.adapters.probe import ProbeConfig, new_probe
from stages.adapters.prompt import PromptConfig, new_prompt

Key = tuple[tuple[int, ...], float]
Module = TypeVar("Module", bound=nn.Module)


def twin(model: Module) -> Module:
    """A copy with modules of its own on the same frozen parameters; trainable ones are copied."""
    shared = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, shared)


def share_frozen(first: nn.Module, second: nn.Module) -> None:
    """Let the second model's frozen parameters be the first's where their numbers are equal.

    Two parameters of one model stay two, though all norms may begin as ones.
    """
    already = {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
    free: dict[Key, list[nn.Parameter]] = {}
    for frozen in first.parameters():
        if not frozen.requires_grad and id(frozen) not in already:
            free.setdefault(_key(frozen), []).append(frozen)
    taken: dict[int, nn.Parameter] = {}
    for module in second.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or parameter.requires_grad or id(parameter) in already:
                continue
            if id(parameter) not in taken:
                equal = free.get(_key(parameter), [])
                same = bool(equal) and torch.equal(equal[0], parameter)
                taken[id(parameter)] = equal.pop(0) if same else parameter
            module._parameters[name] = taken[id(parameter)]


def _key(parameter: nn.Parameter) -> Key:
    return tuple(parameter.shape), float(parameter.detach().sum(dtype=torch.float64))


def restrict(
    model: PreTrainedModel, adaptation: Restricted, tokenizer: PreTrainedTokenizerBase
) -> PeftModel:
    """The model with exactly the parameters of `adaptation` trainable.

    A model that already carries a set goes on training it. Raises ValueError if that set is of
    another family or size.
    """
    if isinstance(model, PeftModel):
        return _go_on(model, adaptation)
    match adaptation:
        case LoRA():
            return cast(PeftModel, new_lora(model, adaptation))
        case Bottleneck():
            return new_bottleneck(model, adaptation)
        case Prefix() | PTuningV2():
            return new_prefix(model, adaptation)
        case Prompt():
            return new_prompt(model, adaptation, tokenizer)
        case BitFit():
            return new_bitfit(model)
        case Probe():
            return new_probe(model, adaptation)


def set_parameters(model: PeftModel) -> tuple[int, int]:
    """How many numbers the set holds, and how many its base does; a tied matrix counts once."""
    added = adapter_parameters(model)
    sizes = {id(parameter): parameter.numel() for parameter in model.parameters()}
    held = sum(size for key, size in sizes.items() if key in added)
    return held, sum(sizes.values()) - held


def trained_share(model: nn.Module, prefix: str) -> dict[str, float]:
    """Two metrics: how many numbers training moves, and what share of the base's that is.

    A tied matrix counts once. A reward model's head counts as the base's.
    """
    added = adapter_parameters(model)
    unique = {id(p): p for p in model.parameters()}
    moved = sum(p.numel() for p in unique.values() if p.requires_grad)
    base = sum(p.numel() for key, p in unique.items() if key not in added)
    return {f"{prefix}trained_parameters": moved, f"{prefix}trained_share": moved / base}


def family_of(model: PeftModel) -> str:
    """The family of a model's set, as configs call it."""
    kind = PeftType(model.peft_config["default"].peft_type).name
    named = {"SOFT_PROMPT": "prompt", "PTUNING_V2": "ptuning-v2"}
    return str(named.get(kind, kind.lower()))


def _go_on(model: PeftModel, adaptation: Restricted) -> PeftModel:
    found = model.peft_config["default"]
    family = family_of(model)
    if family != adaptation.family:
        raise ValueError(
            f"adaptation asks for family {adaptation.family}, the set to go on from is of family "
            f"{family}; use the same, or family full to merge it where that can be"
        )
    if isinstance(adaptation, LoRA):
        return cast(PeftModel, resume_lora(model, adaptation))
    for name, asked, there in _sizes(adaptation, found):
        if asked != there:
            raise ValueError(
                f"adaptation.{name} is {asked}, the set to go on from has {there}; use the same"
            )
    if isinstance(adaptation, Bottleneck):
        set_dropout(model, dropout_of(adaptation))
    model.set_adapter("default")
    return model


def _sizes(adaptation: Restricted, found: object) -> list[tuple[str, object, object]]:
    """What was asked for beside what is there, by the config's names."""
    match adaptation, found:
        case Bottleneck(), BottleneckConfig():
            names = ("width", "activation", "scaling")
            return [(name, vars(adaptation)[name], vars(found)[name]) for name in names]
        case Prefix() | PTuningV2() | Prompt(), PrefixConfig() | PTuningV2Config() | PromptConfig():
            return [("length", adaptation.length, found.length)]
        case Probe(), ProbeConfig():
            width = adaptation.width if adaptation.kind == "mlp" else 0
            return [("width", width, found.width)]
        case BitFit(), BitFitConfig():
            return []
    raise AssertionError(f"{adaptation.family} is not {type(found).__name__}")
