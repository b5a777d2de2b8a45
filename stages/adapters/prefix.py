"""Prefix tuning (Li and Liang 2021) and P-tuning v2 (Liu et al. 2022): keys and values that are
trained stand before every layer's own.

    head_i = softmax(q_i [P_k,i ; K_i]^T / sqrt(d)) [P_v,i ; V_i]

They take no position and no place in the cache, so padding and generation need no special case.
With a reparametrisation, P = MLP(E) while it is trained, with one MLP and E a layer; `fold` leaves
the keys and values alone. A new prefix changes what the model says: its reference in PPO is a
snapshot of the set that PPO began with.
"""

from dataclasses import dataclass, field

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from stages.adapters.config import Prefix, PTuningV2
from stages.adapters.prefix_attention import let_attend_to_sets, put_before, put_nothing_before
from stages.adapters.registration import (
    SetConfig,
    SetLayer,
    SetModel,
    parts_of,
    peft_type,
    register,
)

DEVIATION = 0.02  # of new keys and values


@dataclass
class PrefixConfig(SetConfig):
    """`length` positions of `heads` key-value heads of size `head_size`."""

    length: int = field(default=16)
    heads: int = field(default=0)
    head_size: int = field(default=0)
    reparametrise: int = field(default=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("PREFIX")


@dataclass
class PTuningV2Config(PrefixConfig):
    """A prefix that is never reparametrised."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("PTUNING_V2")


class Reparametrisation(nn.Module):
    """E and the MLP that makes keys and values of it."""

    def __init__(self, config: PrefixConfig) -> None:
        super().__init__()
        size = 2 * config.heads * config.head_size
        self.shape = (config.length, 2, config.heads, config.head_size)
        self.embedding = nn.Parameter(torch.randn(config.length, config.reparametrise))
        self.inner = nn.Linear(config.reparametrise, config.reparametrise)
        self.outer = nn.Linear(config.reparametrise, size)
        nn.init.normal_(self.outer.weight, std=DEVIATION)
        nn.init.zeros_(self.outer.bias)

    def forward(self) -> tuple[Tensor, Tensor]:
        """key_HPD and value_HPD."""
        made = self.outer(torch.tanh(self.inner(self.embedding))).view(self.shape)
        key_HPD, value_HPD = made.permute(1, 2, 0, 3)
        return key_HPD, value_HPD


class PrefixLayer(SetLayer):
    """An attention module with keys and values before its own."""

    adapter_layer_names = ("prefix_key", "prefix_value", "prefix_mlp")

    def begin(self) -> None:
        """Keys and values a set, or what makes them."""
        self.prefix_key, self.prefix_value = nn.ParameterDict(), nn.ParameterDict()
        self.prefix_mlp = nn.ModuleDict()

    def add(self, name: str, config: PrefixConfig) -> None:
        """Normal numbers, as other weights begin."""
        if config.reparametrise:
            self.prefix_mlp[name] = Reparametrisation(config)
            return
        shape = (config.heads, config.length, config.head_size)
        self.prefix_key[name] = nn.Parameter(DEVIATION * torch.randn(shape))
        self.prefix_value[name] = nn.Parameter(DEVIATION * torch.randn(shape))

    def prefix(self, name: str) -> tuple[Tensor, Tensor]:
        """key_HPD and value_HPD of a set."""
        if name in self.prefix_mlp:
            made: tuple[Tensor, Tensor] = self.prefix_mlp[name]()
            return made
        return self.prefix_key[name], self.prefix_value[name]

    def forward(self, *given: object, **named: object) -> object:
        """The attention's output under the active set."""
        name = self.active_name(self.prefix_key) or self.active_name(self.prefix_mlp)
        if name is None:
            return self.base_layer(*given, **named)
        put_before(self.base_layer, *self.prefix(name))
        try:
            return self.base_layer(*given, **named)
        finally:
            put_nothing_before(self.base_layer)

    def fold(self) -> None:
        """Put the keys and values that an MLP makes in its place."""
        for name in list(self.prefix_mlp):
            key_HPD, value_HPD = self.prefix(name)
            self.prefix_key[name] = nn.Parameter(key_HPD.detach().clone())
            self.prefix_value[name] = nn.Parameter(value_HPD.detach().clone())
            del self.prefix_mlp[name]


class PrefixModel(SetModel):
    """PEFT's view of prefix tuning."""

    prefix = "prefix_"
    layer = PrefixLayer

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        super()._prepare_model(peft_config, model)
        assert isinstance(model, PreTrainedModel)
        let_attend_to_sets(model)


class PTuningV2Model(PrefixModel):
    """PEFT's view of P-tuning v2."""

    prefix = "ptuning_v2_"


register("prefix", PrefixConfig, PrefixModel)
register("ptuning_v2", PTuningV2Config, PTuningV2Model)


def new_prefix(model: PreTrainedModel, adaptation: Prefix | PTuningV2) -> PeftModel:
    """The frozen model with a fresh prefix in every layer."""
    heads, size = _heads(model.config)
    places = {parts_of(model).attention}
    match adaptation:
        case PTuningV2():
            config: PrefixConfig = PTuningV2Config(
                target_modules=places, length=adaptation.length, heads=heads, head_size=size
            )
        case Prefix():
            config = PrefixConfig(
                target_modules=places,
                length=adaptation.length,
                heads=heads,
                head_size=size,
                reparametrise=adaptation.reparametrise,
            )
    return get_peft_model(model, config)


def fold_prefixes(model: PeftModel) -> None:
    """Leave only keys and values; a reparametrised prefix is trained as such no further."""
    for layer in model.modules():
        if isinstance(layer, PrefixLayer):
            layer.fold()
    for config in model.peft_config.values():
        if isinstance(config, PrefixConfig):
            config.reparametrise = 0


def _heads(config: PretrainedConfig) -> tuple[int, int]:
    """Key-value heads and the size of one."""
    told = config.to_dict()
    query_heads = int(config.num_attention_heads)
    heads = int(told.get("num_key_value_heads") or query_heads)
    return heads, int(told.get("head_dim") or config.hidden_size // query_heads)
