"""A model's attention under another name, which lets a set stand before its keys."""

from transformers import PreTrainedModel

from reward_models.attention_trial import obstacle_to_attention
from reward_models.pieces import has_sdpa
from reward_models.trunk import transformer


def rename_attention(model: PreTrainedModel, name: str, wanted_by: str) -> None:
    """Let the model's attention be the one called `name`, which adds nothing by itself.

    Raises ValueError without sdpa, and where the model computes something else under that name; it
    is as it was then. A model without weights (one that is only measured) is taken at its word.
    """
    before = model.config._attn_implementation
    if not has_sdpa(model):
        raise ValueError(f"attention is '{before}'; {wanted_by} 'sdpa'")

    def change() -> None:
        model.config._attn_implementation = name

    if model.device.type == "meta":
        change()
        return
    obstacle = obstacle_to_attention([transformer(model)], change)
    if obstacle is not None:
        raise ValueError(
            f"{type(model).__name__}: {wanted_by} attention that can be chosen by name; {obstacle}"
        )
