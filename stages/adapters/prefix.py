"""Prefix tuning (Li and Liang 2021): trained keys and values stand before every layer's own.

    head_i = softmax(q_i [P_k,i ; K_i]^T / sqrt(d)) [P_v,i ; V_i]

They take no position and no room in the cache, so padding and generation need no special case.
With a reparametrisation, P = MLP(E) in training, with one MLP and E a layer; `fold` leaves the keys
and values alone. A new prefix changes the logits, so the reference in PPO is a copy of the adapter
that PPO began with.

Dimension key:  H key-value heads,  P prefix positions,  D head size.
"""

from dataclasses import dataclass, field

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.adapters.config import Prefix
from stages.adapters.prefix_attention import (
    RowPrefix,
    remove_prefix,
    set_prefix,
    use_prefix_attention,
)
from stages.adapters.registration import (
    AdapterConfig,
    AdapterLayer,
    AdapterModel,
    layer_names,
    register,
)

DEVIATION = 0.02  # of new keys and values


@dataclass
class PrefixConfig(AdapterConfig):
    """`length` positions of `heads` key-value heads of size `head_size`."""

    length: int = field(default=16)
    heads: int = field(default=0)
    head_size: int = field(default=0)
    reparametrise: int = field(default=0)


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
        """Return key_HPD and value_HPD."""
        output = self.outer(torch.tanh(self.inner(self.embedding))).view(self.shape)
        key_HPD, value_HPD = output.permute(1, 2, 0, 3)
        return key_HPD, value_HPD


class PrefixLayer(AdapterLayer):
    """An attention module with keys and values before its own."""

    adapter_layer_names = ("prefix_key", "prefix_value", "prefix_mlp")

    def create_containers(self) -> None:
        """Create keys and values an adapter, or what makes them."""
        self.prefix_key, self.prefix_value = nn.ParameterDict(), nn.ParameterDict()
        self.prefix_mlp = nn.ModuleDict()

    def create_adapter(self, name: str, config: PrefixConfig) -> None:
        """Begin with normal numbers, as other weights do."""
        if config.reparametrise:
            self.prefix_mlp[name] = Reparametrisation(config)
            return
        shape = (config.heads, config.length, config.head_size)
        self.prefix_key[name] = nn.Parameter(DEVIATION * torch.randn(shape))
        self.prefix_value[name] = nn.Parameter(DEVIATION * torch.randn(shape))

    def prefix(self, name: str) -> tuple[Tensor, Tensor]:
        """Return key_HPD and value_HPD of an adapter."""
        if name in self.prefix_mlp:
            computed: tuple[Tensor, Tensor] = self.prefix_mlp[name]()
            return computed
        return self.prefix_key[name], self.prefix_value[name]

    def forward(self, *args: object, **kwargs: object) -> object:
        """Return the attention's output under the active adapter."""
        name = self.active_name(self.prefix_key) or self.active_name(self.prefix_mlp)
        if name is None:
            return self.base_layer(*args, **kwargs)
        set_prefix(self.base_layer, RowPrefix.of_every_row(*self.prefix(name)))
        try:
            return self.base_layer(*args, **kwargs)
        finally:
            remove_prefix(self.base_layer)

    def fold(self) -> None:
        """Replace each MLP by the keys and values that it makes."""
        for name in list(self.prefix_mlp):
            key_HPD, value_HPD = self.prefix(name)
            self.prefix_key[name] = nn.Parameter(key_HPD.detach().clone())
            self.prefix_value[name] = nn.Parameter(value_HPD.detach().clone())
            del self.prefix_mlp[name]


class PrefixModel(AdapterModel):
    """PEFT's view of prefix tuning."""

    prefix = "prefix_"
    layer = PrefixLayer

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        super()._prepare_model(peft_config, model)
        assert isinstance(model, PreTrainedModel)
        use_prefix_attention(model)


register("prefix", PrefixConfig, PrefixModel)


def create(model: PreTrainedModel, adaptation: Prefix, _: PreTrainedTokenizerBase) -> PeftModel:
    """Return the frozen model with a fresh prefix in every layer."""
    config = prefix_config(PrefixConfig, model, adaptation.length)
    config.reparametrise = adaptation.reparametrise
    return get_peft_model(model, config)


def prefix_config(kind: type[PrefixConfig], model: PreTrainedModel, length: int) -> PrefixConfig:
    """Return PEFT's settings for a prefix in every layer of this model."""
    settings = model.config.to_dict()
    query_heads = int(model.config.num_attention_heads)
    return kind(
        target_modules={layer_names(model).attention},
        length=length,
        heads=int(settings.get("num_key_value_heads") or query_heads),
        head_size=int(settings.get("head_dim") or model.config.hidden_size // query_heads),
    )


def fold_prefixes(model: PeftModel) -> None:
    """Leave only keys and values; a reparametrised prefix is trained as such no further."""
    for layer in model.modules():
        if isinstance(layer, PrefixLayer):
            layer.fold()
    for config in model.peft_config.values():
        if isinstance(config, PrefixConfig):
            config.reparametrise = 0
