"""A probe: only the head moves (the linear probe of a policy is its unembedding).

    logits = (W + D) h        linear; D begins at 0
    logits = W (h + W_2 gelu(W_1 h + b_1) + b_2)        mlp; W_2 and b_2 begin at 0

D is as large as the unembedding, and the input embedding, which may be tied to W, stays as it is.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.adapters.config import Probe
from stages.adapters.registration import (
    AdapterConfig,
    AdapterLayer,
    AdapterModel,
    module_name,
    own_parameters,
    register,
)


@dataclass
class ProbeConfig(AdapterConfig):
    """PEFT's settings and the `width` of the residual layer; 0 is the linear kind."""

    width: int = field(default=0)


class ProbeLayer(AdapterLayer):
    """The unembedding, or the norm before it, with what an adapter adds to its output."""

    adapter_layer_names = ("added_head", "inner", "outer")

    def create_containers(self) -> None:
        """Create one matrix an adapter, or two."""
        self.added_head, self.inner, self.outer = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()

    def create_adapter(self, name: str, config: ProbeConfig) -> None:
        """Begin with an addition of 0."""
        shape = self.get_base_layer().get_parameter("weight").shape
        if config.width == 0:
            self.added_head[name] = _zeros(nn.Linear(shape[1], shape[0], bias=False))
            return
        size = shape[0]
        self.inner[name] = nn.Linear(size, config.width)
        self.outer[name] = _zeros(nn.Linear(config.width, size))

    def forward(self, h_BLD: Tensor) -> Tensor:
        """Return logits under the active adapter; of the mlp kind, the unembedding's input."""
        y_BLD: Tensor = self.base_layer(h_BLD.to(self._weight().dtype))
        if (name := self.active_name(self.inner)) is not None:
            added_BLD: Tensor = self.outer[name](gelu(self.inner[name](y_BLD.float())))
            return (y_BLD + added_BLD).to(y_BLD.dtype)
        name = None if self.merged else self.active_name(self.added_head)
        return y_BLD if name is None else y_BLD + self.added_head[name](h_BLD.float())

    @property
    def weight(self) -> Tensor:
        """The matrix in effect: TRL multiplies by it without calling the module."""
        name = None if self.merged else self.active_name(self.added_head)
        base = self._weight()
        return base if name is None else base + self.added_head[name].get_parameter("weight")

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:  # noqa: ARG002
        """Add a linear probe to the unembedding, which is untied from the embedding by that."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.added_head:
                raise ValueError("a probe of kind mlp is not linear: it cannot be merged")
            weight = (
                self._weight().detach() + self.added_head[name].get_parameter("weight").detach()
            )
            self.base_layer.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Subtract it again."""
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


class ProbeModel(AdapterModel):
    """PEFT's view of the family."""

    prefix = "added_head"
    layer = ProbeLayer

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        super()._prepare_model(peft_config, model)
        assert isinstance(peft_config, ProbeConfig)
        assert isinstance(model, PreTrainedModel)
        if peft_config.width == 0 and model.dtype != torch.float32:
            model.base_model.register_forward_hook(_widen)


def _widen(_: nn.Module, __: object, output: Any) -> Any:
    """Give the unembedding's float32 matrix (TRL multiplies by it) states of its own dtype."""
    output.last_hidden_state = output.last_hidden_state.float()
    return output


register("probe", ProbeConfig, ProbeModel)


def create(model: PreTrainedModel, adaptation: Probe, _: PreTrainedTokenizerBase) -> PeftModel:
    """Return the frozen model with a trainable head."""
    if adaptation.kind == "mlp":
        target = module_name(model, _last_norm(model), "norm before its unembedding")
    else:
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        target = module_name(model, head, "unembedding to train")
    width = adaptation.width if adaptation.kind == "mlp" else 0
    return get_peft_model(model, ProbeConfig(target_modules={target}, width=width))


def _last_norm(model: PreTrainedModel) -> nn.Module | None:
    """Return the norm between the last layer and the unembedding."""
    weights = ((m, own_parameters(m).get("weight")) for m in model.base_model.children())
    norms = [module for module, weight in weights if weight is not None and weight.dim() == 1]
    return norms[-1] if norms else None
