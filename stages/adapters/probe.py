"""Only the head moves (the linear probe of a policy is its unembedding).

    logits = (W + D) h        linear; D begins at 0
    logits = W (h + W_2 gelu(W_1 h + b_1) + b_2)        mlp; W_2 and b_2 begin at 0

D is as large as the unembedding, and the input embedding, which may be tied to W, stays as it is.
"""

from dataclasses import dataclass, field

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import PreTrainedModel

from stages.adapters.config import Probe
from stages.adapters.registration import (
    SetConfig,
    SetLayer,
    SetModel,
    head_place,
    last_norm_place,
    peft_type,
    register,
)


@dataclass
class ProbeConfig(SetConfig):
    """`width` 0 is the linear kind."""

    width: int = field(default=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("PROBE")


class ProbeLayer(SetLayer):
    """The unembedding, or the norm whose output it reads, and what a set adds to it."""

    adapter_layer_names = ("added_head", "inner", "outer")

    def begin(self) -> None:
        """A matrix a set, or two."""
        self.added_head, self.inner, self.outer = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()

    def add(self, name: str, config: ProbeConfig) -> None:
        """At first it changes nothing."""
        shape = self.get_base_layer().get_parameter("weight").shape
        if config.width == 0:
            self.added_head[name] = _zeros(nn.Linear(shape[1], shape[0], bias=False))
            return
        size = shape[0]
        self.inner[name] = nn.Linear(size, config.width)
        self.outer[name] = _zeros(nn.Linear(config.width, size))

    def forward(self, h_BLD: Tensor) -> Tensor:
        """Logits under the active set; of the mlp kind, what the unembedding reads."""
        y_BLD: Tensor = self.base_layer(h_BLD)
        if (name := self.active_name(self.inner)) is not None:
            added_BLD: Tensor = self.outer[name](gelu(self.inner[name](y_BLD)))
            return y_BLD + added_BLD
        name = None if self.merged else self.active_name(self.added_head)
        return y_BLD if name is None else y_BLD + self.added_head[name](h_BLD)

    @property
    def weight(self) -> Tensor:
        """The matrix that acts: TRL multiplies by it without calling the module."""
        name = None if self.merged else self.active_name(self.added_head)
        base = self._weight()
        return base if name is None else base + self.added_head[name].get_parameter("weight")

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:  # noqa: ARG002
        """Add a linear set to the unembedding, which is untied from the embedding by that."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.added_head:
                raise ValueError("a probe of kind mlp is not linear: it cannot be merged")
            weight = (
                self._weight().detach() + self.added_head[name].get_parameter("weight").detach()
            )
            self.base_layer.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take it away again."""
        while self.merged_adapters:
            added = self.added_head[self.merged_adapters.pop()].get_parameter("weight")
            with torch.no_grad():
                self._weight().sub_(added)

    def _weight(self) -> Tensor:
        return self.base_layer.get_parameter("weight")


def _zeros(layer: nn.Linear) -> nn.Linear:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ProbeModel(SetModel):
    """PEFT's view of the family."""

    prefix = "added_head"
    layer = ProbeLayer


register("probe", ProbeConfig, ProbeModel)


def new_probe(model: PreTrainedModel, adaptation: Probe) -> PeftModel:
    """The frozen model with a trainable head."""
    if adaptation.kind == "mlp":
        place, width = last_norm_place(model), adaptation.width
    else:
        place, width = head_place(model), 0
    return get_peft_model(model, ProbeConfig(target_modules={place}, width=width))
