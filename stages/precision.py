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

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from reward_models.backbone import FLOAT32, WeightFormat, token_embedding
from stages.adapters.config import Full, Restricted
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

    def autocast(self, model: nn.Module) -> torch.autocast:
        """Return the context of a pass: autocast for float32 weights, if `compute` is narrower."""
        weight_VD = token_embedding(model).weight
        wide = weight_VD.dtype == torch.float32 and self.compute != torch.float32
        dtype = self.compute if wide else torch.bfloat16
        return torch.autocast(weight_VD.device.type, dtype, enabled=wide)


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


def _native(device: torch.device) -> torch.dtype:
    """Return the dtype in which a device computes fast and well."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32
