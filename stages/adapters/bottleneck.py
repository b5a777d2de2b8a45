"""Bottleneck adapters (Houlsby et al. 2019, section 2.1):

    Adapter(z) = z + scaling * (W_up s(W_down z + b) + c)

z is the output of a sublayer: of attention and of the MLP (houlsby), or of the MLP alone (Pfeiffer
et al. 2021). In parallel (He et al. 2022, table 1) the addition is computed from the MLP's input.
W_up begins at 0, so that a new adapter changes nothing, exactly.
"""

from dataclasses import dataclass, field

from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from stages.adapters.config import Bottleneck
from stages.adapters.registration import (
    Parts,
    SetConfig,
    SetLayer,
    SetModel,
    output_size,
    parts_of,
    peft_type,
    register,
)


@dataclass
class BottleneckConfig(SetConfig):
    """Sizes as in `stages.adapters.config.Bottleneck`; `size` is that of the hidden states."""

    width: int = field(default=32)
    size: int = field(default=0)
    activation: str = field(default="gelu")
    scaling: float = field(default=1.0)
    dropout: float = field(default=0.0)
    parallel: bool = field(default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("BOTTLENECK")


class BottleneckLayer(SetLayer):
    """A sublayer (or, in parallel, an MLP) with adapters after (beside) it."""

    adapter_layer_names = ("down", "up")
    other_param_names = ("settings",)

    def begin(self) -> None:
        """Down and up projections by name."""
        self.down, self.up = nn.ModuleDict(), nn.ModuleDict()
        self.dropout = nn.ModuleDict()
        self.settings: dict[str, BottleneckConfig] = {}

    def add(self, name: str, config: BottleneckConfig) -> None:
        """W_down as nn.Linear begins, W_up and both biases 0."""
        size = config.size or output_size(self.base_layer)
        down, up = nn.Linear(size, config.width), nn.Linear(config.width, size)
        for parameter in (down.bias, up.weight, up.bias):
            nn.init.zeros_(parameter)
        self.down[name], self.up[name] = down, up
        self.dropout[name] = nn.Dropout(config.dropout)
        self.settings[name] = config

    def forward(self, x_BLD: Tensor, *further: object, **named: object) -> Tensor:
        """The sublayer's output with the active adapter's addition."""
        y_BLD: Tensor = self.base_layer(x_BLD, *further, **named)
        name = self.active_name(self.down)
        if name is None:
            return y_BLD
        settings = self.settings[name]
        z_BLD = self.dropout[name](x_BLD if settings.parallel else y_BLD)
        low = ACT2FN[settings.activation](self.down[name](z_BLD))
        added_BLD: Tensor = settings.scaling * self.up[name](low)
        return y_BLD + added_BLD


class BottleneckModel(SetModel):
    """PEFT's view of the family."""

    prefix = "bottleneck_"
    layer = BottleneckLayer


register("bottleneck", BottleneckConfig, BottleneckModel)


def new_bottleneck(model: PreTrainedModel, adaptation: Bottleneck) -> PeftModel:
    """The frozen model with fresh adapters. Raises ValueError for an unknown architecture."""
    config = BottleneckConfig(
        target_modules=_places(parts_of(model), adaptation),
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


def set_dropout(model: nn.Module, rate: float) -> None:
    """The dropout of adapters that are there already."""
    for layer in model.modules():
        if isinstance(layer, BottleneckLayer):
            for name in layer.dropout:
                layer.dropout[name] = nn.Dropout(rate)


def _places(parts: Parts, adaptation: Bottleneck) -> set[str]:
    match adaptation.placement:
        case "houlsby":
            return {parts.attention_output, parts.mlp_output}
        case "pfeiffer":
            return {parts.mlp_output}
        case "parallel":
            if not parts.mlp:
                raise ValueError("adaptation.placement parallel needs an MLP that is one module")
            return {parts.mlp}
