"""Dropout at the outputs of attention and MLP, for the architectures whose blocks are known."""

from functools import partial

from torch import Tensor, nn
from torch.nn.functional import dropout
from transformers import PreTrainedModel

from stages.adapters.backbone import layers_of

_GPT2 = ("attn", "mlp")
_LLAMA = ("self_attn", "mlp")
_NEOX = ("attention", "mlp")
# The names of a layer's two blocks, by `model_type`; both add straight to the residual.
BLOCKS = {
    "gpt2": _GPT2,
    "falcon": ("self_attention", "mlp"),
    "gpt_neox": _NEOX,
    "granite": _LLAMA,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "olmo": _LLAMA,
    "opt": ("self_attn", "fc2"),
    "phi3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
}


def add_residual_dropout(model: PreTrainedModel, rate: float) -> None:
    """Add dropout to the output of every block, active while the model is in training mode.

    Raises ValueError for an architecture whose blocks' names are not known.
    """
    if rate == 0.0:
        return
    kind = model.config.model_type
    if kind not in BLOCKS:
        raise ValueError(
            f"dropout is {rate}, but no residual dropout is known for the architecture '{kind}'; "
            f"set it to 0, or use one of {', '.join(BLOCKS)}"
        )
    for layer in layers_of(model):
        for name in BLOCKS[kind]:
            layer.get_submodule(name).register_forward_hook(partial(_drop, rate))


def _drop(
    rate: float, block: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]
) -> Tensor | tuple[Tensor, ...]:
    if isinstance(output, tuple):  # attention also returns its weights
        return (dropout(output[0], rate, block.training), *output[1:])
    return dropout(output, rate, block.training)
