"""Formats of weights in memory: a dtype, or linear layers quantised by bitsandbytes.

NF4 (Dettmers et al. 2023) stores 4 bits a weight and quantises its scales again; int8 is LLM.int8()
(Dettmers et al. 2022). Quantised layers compute in the dtype of the other weights.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import WeightConverter

log = logging.getLogger(__name__)

BITSANDBYTES = "bitsandbytes"
EXTRA = "bitsandbytes"  # of this package
_COARSE = 8  # roundings that two ways to compute an output may differ by, of the largest number
logging.getLogger(BITSANDBYTES).setLevel(logging.ERROR)  # it warns at every product in int8
_INT8 = 0.1  # the same for int8, whose products depend on what else is in the batch


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """The format of a loaded model's weights.

    `dtype` is that of all floating-point weights, and of computing; the matrices of linear layers
    may be `quantised` to 4-bit normal floats or 8-bit integers beside it.
    """

    dtype: torch.dtype = torch.float32
    quantised: Literal["nf4", "int8"] | None = None

    def exact_for(self, stored: frozenset[torch.dtype]) -> bool:
        """Return true where no weight of these dtypes changes its value by being loaded."""
        exact = {self.dtype, torch.bfloat16, torch.float16} if self == FLOAT32 else {self.dtype}
        return self.quantised is None and stored <= exact


FLOAT32 = WeightFormat()


def require_bitsandbytes(reason: str) -> None:
    """Raise ValueError where quantised weights are needed and bitsandbytes is not installed."""
    if find_spec(BITSANDBYTES) is None:
        raise ValueError(
            f"{reason}, and bitsandbytes is not installed; expected pip install "
            f"'instruct-rlhf[{EXTRA}]'"
        )


def loading_arguments(config: PretrainedConfig, weights: WeightFormat) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for a format; ValueError without bitsandbytes.

    A folder that is quantised already stays so, and computes in the format's dtype.
    """
    stored = quantisation_of(config)
    if stored is not None:
        require_bitsandbytes("the weights are quantised")
        if isinstance(stored, dict):
            stored["bnb_4bit_compute_dtype"] = str(weights.dtype).removeprefix("torch.")
        return {"dtype": weights.dtype}
    if weights.quantised is None:
        return {"dtype": weights.dtype}
    require_bitsandbytes(f"precision.weights is {weights.quantised}")
    chosen = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=weights.quantised == "nf4",
        load_in_8bit=weights.quantised == "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=weights.dtype,
    )
    return {"dtype": weights.dtype, "quantization_config": chosen}


def quantisation_of(config: PretrainedConfig) -> Any:
    """Return the quantisation that a stored model's config names, None where there is none."""
    return vars(config).get("quantization_config")


def quantised_layers(model: nn.Module) -> Iterator[nn.Linear]:
    """Yield the layers of a model whose matrices are quantised."""
    for module in model.modules():
        layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if isinstance(layer, nn.Linear) and not layer.weight.is_floating_point():
            yield layer


def is_quantised(model: nn.Module) -> bool:
    """Return true where a layer's matrix is quantised."""
    return next(quantised_layers(model), None) is not None


def dequantise(model: PreTrainedModel) -> None:
    """Put float32 matrices of the same values in the place of quantised ones; the log says so.

    An adapter must not be on the model yet: PEFT would merge it into quantised weights, rounded.
    """
    if not is_quantised(model):
        return
    model.dequantize(dtype=torch.float32)  # type: ignore[no-untyped-call]
    # transformers 5 would undo the reading of quantised files as it saves, which has no way back.
    steps = vars(model).get("_weight_conversions") or []
    vars(model)["_weight_conversions"] = [step for step in steps if not _reads_quantised(step)]
    log.warning(
        "%s: its quantised weights were dequantised; they have the values that they were rounded "
        "to, not those before",
        model.config.name_or_path,
    )


def _reads_quantised(step: object) -> bool:
    """Return true for a step of transformers' loading that puts quantised weights together."""
    operations = step.operations if isinstance(step, WeightConverter) else []
    return any(type(operation).__module__.endswith(BITSANDBYTES) for operation in operations)


def rounding(model: nn.Module, exact: float) -> float:
    """Return the share by which two ways to compute an output of this model may differ.

    `exact` is that of float32. What is further apart is another function, and no rounding. Autocast
    around the call counts.
    """
    weights = list(model.parameters())
    dtypes = {p.dtype for p in weights}
    if torch.int8 in dtypes:
        return _INT8
    kind = weights[0].device.type
    if torch.is_autocast_enabled(kind):
        dtypes.add(torch.get_autocast_dtype(kind))
    narrow = [torch.finfo(dtype).eps for dtype in dtypes if dtype in (torch.bfloat16, torch.half)]
    return max([exact, *(_COARSE * eps for eps in narrow)])


def quantised_state(model: nn.Module) -> list[object]:
    """Return the scales and codes beside quantised matrices, which copies of a model may share."""
    state: list[object] = []
    for layer in quantised_layers(model):
        parts = vars(layer)
        if parts.get("quant_state") is not None:
            state.append(parts["quant_state"])
        if "state" in parts:  # int8: the matrix moves here at the first pass
            inner = vars(parts["state"])
            state += [inner[name] for name in ("CB", "SCB") if isinstance(inner.get(name), Tensor)]
    return state


def settle(model: nn.Module, source: str) -> None:
    """Check quantised layers, and let 4-bit ones on a CPU keep the layout that gradients need.

    bitsandbytes 0.50 repacks a matrix at the first pass in eval mode where the CPU has AVX-512 with
    bf16, and a repacked one has no way back. ValueError where the scales are missing.
    """
    for layer in quantised_layers(model):
        name = "SCB" if layer.weight.dtype == torch.int8 else "quant_state"
        if all(vars(part).get(name) is None for part in (layer.weight, layer)):
            raise ValueError(f"{source}: its config says quantised, its weights are not")
        if "support_avx512bf16_for_cpu" in vars(layer):
            vars(layer)["support_avx512bf16_for_cpu"] = False
