"""The one place where a `Precision` becomes dtypes, for every stage and every way of starting.

                  frozen weights        compute     what full fine-tuning trains
    CUDA, bf16    bfloat16              bfloat16    float32 under autocast
    CUDA, older   float32               float32     float32
    CPU, mps      float32               float32     float32

On cards before Ampere float32 is the default: float16 overflows in models that were trained in
bfloat16, and gradients through frozen float16 layers vanish where no loss is scaled.
A frozen model computes in the dtype of its own weights, without autocast, which would convert them
at every pass and keep the copies for the way back.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from reward_models.backbone import adapter_parameters, token_embedding, transformer
from reward_models.model import RewardModel
from reward_models.weights.formats import FLOAT32, WeightFormat
from stages.adapters.config import Full, Restricted
from stages.models import device
from stages.precision_config import Precision

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_NAMES: dict[torch.dtype, Literal["no", "bf16", "fp16"]] = {
    torch.float32: "no",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


@dataclass(frozen=True, slots=True)
class Numerics:
    """The dtypes of a stage: `frozen` of weights that do not move, `compute` of products."""

    frozen: WeightFormat = FLOAT32
    compute: torch.dtype = torch.float32
    masters: Literal["fp32", "kahan", "stochastic"] = "fp32"

    @property
    def trained(self) -> WeightFormat:
        """The format of weights that full fine-tuning moves."""
        return FLOAT32 if self.masters == "fp32" else WeightFormat(self.compute)

    def of(self, adaptation: Full | Restricted) -> WeightFormat:
        """Return the format in which the model that a stage trains is loaded."""
        return self.trained if isinstance(adaptation, Full) else self.frozen

    def mixed_precision(self, weights: WeightFormat) -> Literal["no", "bf16", "fp16"]:
        """Return the autocast, by accelerate's name, of a model with such weights.

        Weights that are in the dtype of computing already need none. In float16 there is one for
        the sake of the loss scaling that comes with it.
        """
        if weights == FLOAT32 or self.compute == torch.float16:
            return _NAMES[self.compute]
        return "no"

    def autocast(self, *models: nn.Module) -> torch.autocast:
        """Return the context of passes of models: autocast where one of them has wide weights."""
        wide = [model for model in models if self.is_wide(model)]
        device = next(models[0].parameters()).device.type
        dtype = self.compute if wide else torch.bfloat16
        return torch.autocast(device, dtype, enabled=bool(wide))

    def is_wide(self, model: nn.Module) -> bool:
        """Return true for float32 weights, of which embeddings tell, that compute in 16 bits."""
        if self.compute == torch.float32:
            return False
        backbone = model.backbone if isinstance(model, RewardModel) else model
        if not isinstance(backbone, PreTrainedModel | PeftModel):
            return False  # a head
        return token_embedding(transformer(backbone)).weight.dtype == torch.float32


EXACT = Numerics()


def resolved(precision: Precision, device: torch.device) -> Numerics:
    """Return the dtypes on a device; ValueError for masters in 16 bits that compute in 32.

    On CUDA, products that stay float32 beside narrower ones are made in TF32.
    """
    wide = precision.weights in Precision.quantised or precision.weights == "auto"
    chosen = precision.compute if wide or precision.compute != "auto" else precision.weights
    compute = _native(device) if chosen == "auto" else _DTYPES[chosen]
    if precision.masters != "fp32" and compute != torch.bfloat16:
        raise ValueError(
            f"precision.masters is {precision.masters} but products are in {compute}; expected "
            "precision.compute bf16"
        )
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = compute != torch.float32
        torch.backends.cudnn.allow_tf32 = compute != torch.float32
    quantised = precision.weights if precision.weights in ("nf4", "int8") else None
    return Numerics(WeightFormat(compute, quantised), compute, precision.masters)


_inference: ContextVar[Precision | None] = ContextVar("precision", default=None)


@contextmanager
def inference_precision(precision: Precision) -> Iterator[None]:
    """Let models that are loaded to sample and to score be in this precision for a while."""
    token = _inference.set(precision)
    try:
        yield
    finally:
        _inference.reset(token)


def inference_weights() -> WeightFormat:
    """Return the format in which a model that is not trained is loaded here; `auto` by default."""
    return resolved(_inference.get() or Precision(), device()).frozen


def require_trainable_precision(numerics: Numerics) -> None:
    """Raise ValueError for float16 without loss scaling: small gradients would become 0."""
    if numerics.compute == torch.float16:
        raise ValueError(
            "precision.compute is fp16, and this stage does not scale its losses, so that small "
            "gradients would become 0; expected bf16 or fp32"
        )


def narrow_frozen(
    models: Sequence[nn.Module], dtype: torch.dtype, *, unless_in: Sequence[nn.Module]
) -> None:
    """Convert the float32 matrices that autocast would convert at every pass, once and for all.

    Those are the frozen ones of linear layers, but for those that an embedding or a model of
    `unless_in` has too. No output under autocast changes by a bit. Nothing happens where `dtype` is
    float32.
    """
    if dtype == torch.float32:
        return
    left = {id(p) for model in unless_in for p in model.parameters()}
    for model in models:
        left |= {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    narrow: dict[int, nn.Parameter] = {}
    for layer in _linear_layers(models):
        weight = layer.get_parameter("weight")
        if weight.requires_grad or id(weight) in left or weight.dtype != torch.float32:
            continue
        if id(weight) not in narrow:
            narrow[id(weight)] = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
        layer.register_parameter("weight", narrow[id(weight)])


@contextmanager
def narrowed(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let a model under autocast decode with copies of its matrices, made once.

    Autocast would convert all of them at every token. Nothing happens to a model that computes in
    the dtype of its weights.
    """
    weights = [(layer, layer.get_parameter("weight")) for layer in _linear_layers([model])]
    wide = [(layer, x) for layer, x in weights if x.dtype == torch.float32 != dtype]
    try:
        for layer, weight in wide:
            copy = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
            layer.register_parameter("weight", copy)
        yield
    finally:
        for layer, weight in wide:
            layer.register_parameter("weight", weight)


def _linear_layers(models: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """Yield the linear layers of language models, whose inputs autocast converts too.

    A head of its own computes in float32, and an adapter's layers are left alone: they are small.
    """
    for model in models:
        adapted = adapter_parameters(model)
        inner = model.backbone if isinstance(model, RewardModel) else model
        for module in inner.modules():
            if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in adapted:
                yield module


def _native(device: torch.device) -> torch.dtype:
    """Return the dtype in which a device computes fast and well."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32
