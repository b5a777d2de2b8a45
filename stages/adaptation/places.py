"""Where in a model a family puts its sets, by the names that architectures give their parts."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True, slots=True)
class Parts:
    """Endings of module names inside a layer; "" where an architecture has no such module."""

    attention: str
    attention_output: str
    mlp: str
    mlp_output: str


_PARTS = (
    Parts("self_attn", "self_attn.o_proj", "mlp", "mlp.down_proj"),  # Llama, Qwen, Gemma, Mistral
    Parts("attn", "attn.c_proj", "mlp", "mlp.c_proj"),  # GPT-2
    Parts("attention", "attention.dense", "mlp", "mlp.dense_4h_to_h"),  # GPT-NeoX
    Parts("self_attn", "self_attn.out_proj", "", "fc2"),  # OPT
)


def parts_of(model: PreTrainedModel) -> Parts:
    """The names that fit this model; ValueError where none do."""
    names = [name for name, _ in model.named_modules()]
    for parts in _PARTS:
        wanted = [parts.attention_output, parts.mlp_output]
        if all(any(name.endswith(f".{part}") for name in names) for part in wanted):
            return parts
    raise ValueError(
        f"{type(model).__name__}: its attention and MLP have names this family does not know; "
        "family lora works with any linear layer"
    )


def biased_places(model: PreTrainedModel) -> set[str]:
    """Endings of all layers that have a bias; of all linear layers where there is none."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    inside = [(name, module) for name, module in model.named_modules() if module is not head]
    biased = {name for name, module in inside if module._parameters.get("bias") is not None}
    if not biased:
        biased = {name for name, module in inside if isinstance(module, nn.Linear | Conv1D)}
    return {_ending(name) for name in biased}


def head_place(model: PreTrainedModel) -> str:
    """The name of the unembedding."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for name, module in model.named_modules():
        if module is head:
            return str(name)
    raise ValueError(f"{type(model).__name__} has no unembedding to train")


def last_norm_place(model: PreTrainedModel) -> str:
    """The name of the norm whose output the unembedding reads."""
    trunk = model.base_model
    norms = [
        module
        for module in trunk.children()
        if (weight := module._parameters.get("weight")) is not None and weight.dim() == 1
    ]
    for name, module in model.named_modules():
        if norms and module is norms[-1]:
            return str(name)
    raise ValueError(f"{type(model).__name__} has no norm before its unembedding")


def table_place(model: PreTrainedModel) -> str:
    """The name of the input embedding."""
    table = model.get_input_embeddings()
    return next(str(name) for name, module in model.named_modules() if module is table)


def _ending(name: str) -> str:
    """Without the layers' common beginning: what follows the last number."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[-1] + 1 :]) if numbers else name
