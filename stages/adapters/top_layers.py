"""Fine-tuning of a model's last layers alone: those below stay, and are shared between roles.

No gradient goes below the lowest layer that moves, so a pass back costs in proportion to the
layers that do; embeddings, unembedding and final norm stay too.
"""

from torch import nn
from transformers import PreTrainedModel


def train_layers(model: PreTrainedModel, top: int | None) -> None:
    """Let all parameters move, or those of the `top` last layers alone.

    Raises ValueError where the model has fewer layers than that.
    """
    model.requires_grad_(top is None)
    if top is None:
        return
    stack = layers_of(model)
    if top > len(stack):
        raise ValueError(f"adaptation.top_layers is {top}, the model has {len(stack)} layers")
    for layer in list(stack)[-top:]:
        layer.requires_grad_(True)


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The stack of layers of a causal language model or of its transformer."""
    count = model.config.num_hidden_layers
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    assert len(stacks) == 1, "one stack of layers in a causal language model"
    return stacks[0]
