"""Linear layers laid out anew for oneDNN, for as long as nothing trains them.

On a CPU torch multiplies float32 matrices by MKL, which takes a weight as it lies. Decoding has a
few rows at a time, for which most of the work is to bring the weight into the order that the
processor wants. oneDNN does that once, as torch.compile's freezing has it do; what it gives differs
by rounding (docs/performance.md says what is saved).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn

_ROWS = 16  # that the order is best for; it holds for any number


@contextmanager
def packed_weights(model: nn.Module, limit_mib: int) -> Iterator[None]:
    """Meanwhile `nn.Linear` layers read a copy of their float32 weights, if it fits `limit_mib`.

    Whoever reads `weight` itself gets it as it is. Nothing happens on a GPU, in 16 bits, or where
    torch was built without oneDNN.
    """
    modules = model.modules() if torch._C._has_mkldnn else ()
    layers = [module for module in modules if _can_be_packed(module)]
    size = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
    if size > limit_mib * 2**20 or torch.is_autocast_enabled("cpu"):
        layers = []
    try:
        for layer in layers:
            weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)
            vars(layer)["forward"] = partial(_product, weight, layer.bias)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _can_be_packed(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """A plain layer with its numbers here: not divided among ranks, not wrapped by others."""
    if type(layer) is not nn.Linear or "forward" in vars(layer):
        return False
    weight, whole = layer.weight, (layer.out_features, layer.in_features)
    plain = type(weight) in (nn.Parameter, Tensor) and weight.shape == whole
    return plain and weight.device.type == "cpu" and weight.dtype == torch.float32


def _product(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """`x @ weight.T + bias` of a weight in oneDNN's order."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result
