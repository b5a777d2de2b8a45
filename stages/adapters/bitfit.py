"""BitFit (Ben Zaken et al. 2022): nothing moves but biases.

    y = W x + b + b_set

A set holds what is added to every bias. Where the layers of a model have no bias (Llama, Qwen3),
every linear layer gets one that begins at 0; that is the same idea on other numbers.
"""

from dataclasses import dataclass

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from transformers import PreTrainedModel

from stages.adapters.registration import (
    SetConfig,
    SetLayer,
    SetModel,
    add_bias,
    biased_places,
    output_size,
    peft_type,
    register,
)


@dataclass
class BitFitConfig(SetConfig):
    """Nothing to choose."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("BITFIT")


class BitFitLayer(SetLayer):
    """A layer whose output gets the set's bias."""

    adapter_layer_names = ("added_bias",)

    def begin(self) -> None:
        """One bias a set."""
        self.added_bias = nn.ParameterDict()

    def add(self, name: str, config: BitFitConfig) -> None:  # noqa: ARG002 - nothing to choose
        """It begins at 0."""
        self.added_bias[name] = nn.Parameter(torch.zeros(output_size(self.base_layer)))

    def forward(self, x: Tensor, *further: object, **named: object) -> Tensor:
        """The layer's output plus the active bias."""
        y: Tensor = self.base_layer(x, *further, **named)
        name = None if self.merged else self.active_name(self.added_bias)
        return y if name is None else y + self.added_bias[name].to(y.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:  # noqa: ARG002
        """Add it to the layer's own bias."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.added_bias:
                add_bias(self.base_layer, self.added_bias[name])
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take it away again."""
        while self.merged_adapters:
            add_bias(self.base_layer, -self.added_bias[self.merged_adapters.pop()])


class BitFitModel(SetModel):
    """PEFT's view of the family."""

    prefix = "added_bias"
    layer = BitFitLayer


register("bitfit", BitFitConfig, BitFitModel)


def new_bitfit(model: PreTrainedModel) -> PeftModel:
    """The frozen model with a trainable addition to every bias, 0 at the start."""
    return get_peft_model(model, BitFitConfig(target_modules=biased_places(model)))
