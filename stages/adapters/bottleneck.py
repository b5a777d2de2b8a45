"""Bottleneck adapters (Houlsby et al. 2019, section 2.1):

    Adapter(z) = z + scaling * (W_up s(W_down z + b) + c)

z is the output of a sublayer: of attention and of the MLP (houlsby), or of the MLP alone (Pfeiffer
et al. 2021). In parallel (He et al. 2022, table 1) the addition is computed from the MLP's input.
W_up begins at 0, so that a new adapter changes nothing, exactly.
"""

from dataclasses import dataclass, field

from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import ACT2FN

from stages.adapters.config import Bottleneck
from stages.adapters.registration import (
    AdapterConfig,
    AdapterLayer,
    AdapterModel,
    LayerNames,
    layer_names,
    output_size,
    register,
)


@dataclass
class BottleneckConfig(AdapterConfig):
    """Sizes as in `stages.adapters.config.Bottleneck`; `size` is that of the hidden states."""

    width: int = field(default=32)
    size: int = field(default=0)
    activation: str = field(default="gelu")
    scaling: float = field(default=1.0)
    dropout: float = field(default=0.0)
    parallel: bool = field(default=False)


class BottleneckLayer(AdapterLayer):
    """A sublayer (or, in parallel, an MLP) with adapters after (beside) it."""

    adapter_layer_names = ("down", "up")
    other_param_names = ("settings",)

    def create_containers(self) -> None:
        """Create down and up projections by name."""
        self.down, self.up = nn.ModuleDict(), nn.ModuleDict()
        self.dropout = nn.ModuleDict()
        self.settings: dict[str, BottleneckConfig] = {}

    def create_adapter(self, name: str, config: BottleneckConfig) -> None:
        """Initialise W_down as nn.Linear does, W_up and both biases at 0."""
        size = config.size or output_size(self.base_layer)
        down, up = nn.Linear(size, config.width), nn.Linear(config.width, size)
        for parameter in (down.bias, up.weight, up.bias):
            nn.init.zeros_(parameter)
        self.down[name], self.up[name] = down, up
        self.dropout[name] = nn.Dropout(config.dropout)
        self.settings[name] = config

    def set_dropout(self, rate: float) -> None:
        """Change the dropout before the down projections."""
        for name in self.dropout:
            self.dropout[name] = nn.Dropout(rate)

    def forward(self, x_BLD: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Return the sublayer's output with the active adapter's addition."""
        y_BLD: Tensor = self.base_layer(x_BLD, *args, **kwargs)
        name = self.active_name(self.down)
        if name is None:
            return y_BLD
        settings = self.settings[name]
        down = self.down[name]
        z_BLD = self.dropout[name](x_BLD if settings.parallel else y_BLD).to(down.weight.dtype)
        low = ACT2FN[settings.activation](down(z_BLD))
        added_BLD: Tensor = settings.scaling * self.up[name](low)
        return (y_BLD + added_BLD).to(y_BLD.dtype)


class BottleneckModel(AdapterModel):
    """PEFT's view of the family."""

    prefix = "bottleneck_"
    layer = BottleneckLayer


register("bottleneck", BottleneckConfig, BottleneckModel)


def create(model: PreTrainedModel, adaptation: Bottleneck, _: PreTrainedTokenizerBase) -> PeftModel:
    """Return the frozen model with fresh adapters; ValueError for an unknown architecture."""
    config = BottleneckConfig(
        target_modules=_target_modules(layer_names(model), adaptation),
        width=adaptation.width,
        size=int(model.config.hidden_size),
        activation=adaptation.activation,
        scaling=adaptation.scaling,
        dropout=adaptation.dropout,
        parallel=adaptation.placement == "parallel",
    )
    if adaptation.activation not in ACT2FN:
        raise ValueError(f"adaptation.activation '{adaptation.activation}' is not known")
    return get_peft_model(model, config)


def _target_modules(names: LayerNames, adaptation: Bottleneck) -> set[str]:
    match adaptation.placement:
        case "houlsby":
            return {names.attention_output, names.mlp_output}
        case "pfeiffer":
            return {names.mlp_output}
        case "parallel":
            if not names.mlp:
                raise ValueError("adaptation.placement parallel needs an MLP that is one module")
            return {names.mlp}
