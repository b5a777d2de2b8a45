"""BitFit (Ben Zaken et al. 2022): only biases are trained.

    y = W x + b + b_adapter

The adapter holds what is added to every bias. Where the layers of a model have no bias (Llama,
Qwen3), every linear layer gets one, initialised at 0.
"""

from dataclasses import dataclass

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from stages.adapters.config import BitFit
from stages.adapters.registration import (
    AdapterConfig,
    AdapterLayer,
    AdapterModel,
    add_bias,
    output_size,
    own_parameters,
    register,
)


@dataclass
class BitFitConfig(AdapterConfig):
    """PEFT's settings; the family has none of its own."""


class BitFitLayer(AdapterLayer):
    """A layer whose output gets the adapter's bias."""

    adapter_layer_names = ("added_bias",)

    def create_containers(self) -> None:
        """Create one bias an adapter."""
        self.added_bias = nn.ParameterDict()

    def create_adapter(self, name: str, config: BitFitConfig) -> None:  # noqa: ARG002
        """Begin at 0."""
        self.added_bias[name] = nn.Parameter(torch.zeros(output_size(self.base_layer)))

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Return the layer's output plus the active bias."""
        y: Tensor = self.base_layer(x, *args, **kwargs)
        name = None if self.merged else self.active_name(self.added_bias)
        return y if name is None else (y + self.added_bias[name]).to(y.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:  # noqa: ARG002
        """Add the adapter's bias to the layer's own."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.added_bias:
                add_bias(self.base_layer, self.added_bias[name])
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Subtract it again."""
        while self.merged_adapters:
            add_bias(self.base_layer, -self.added_bias[self.merged_adapters.pop()])


class BitFitModel(AdapterModel):
    """PEFT's view of the family."""

    prefix = "added_bias"
    layer = BitFitLayer


register("bitfit", BitFitConfig, BitFitModel)


def create(model: PreTrainedModel, _: BitFit, __: PreTrainedTokenizerBase) -> PeftModel:
    """Return the frozen model with a trainable addition to every bias, 0 at the start."""
    return get_peft_model(model, BitFitConfig(target_modules=biased_modules(model)))


def biased_modules(model: PreTrainedModel) -> set[str]:
    """Return endings of all layers that have a bias; of all linear layers where there is none."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    inside = [(name, module) for name, module in model.named_modules() if module is not head]
    biased = {name for name, module in inside if "bias" in own_parameters(module)}
    if not biased:
        biased = {name for name, module in inside if isinstance(module, nn.Linear | Conv1D)}
    return {_name_in_layer(name) for name in biased}


def _name_in_layer(name: str) -> str:
    """Return a module's name without that of its layer: the parts after the last number."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[-1] + 1 :]) if numbers else name
