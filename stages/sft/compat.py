"""Every touch of a private part of TRL and of the models that its SFTTrainer is given (TRL 1.16).

tests/stages/distributed/test_compat.py fails where a new version differs.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel


@contextmanager
def unembedding_of(model: PreTrainedModel, matrix: nn.Module) -> Iterator[None]:
    """Let `matrix` pass for the model's unembedding while TRL's SFTTrainer is made.

    It refuses adapters on the unembedding, because its fused loss takes the layer's weight; a
    probe's weight is the whole of what the layer computes.
    """
    if model.get_output_embeddings() is matrix:  # type: ignore[no-untyped-call]
        yield
        return
    vars(model)["get_output_embeddings"] = lambda: matrix
    try:
        yield
    finally:
        del vars(model)["get_output_embeddings"]


@contextmanager
def router_coefficient_restored(model: PreTrainedModel) -> Iterator[None]:
    """Restore what SFTTrainer overwrites in a config: the weight of experts' auxiliary loss."""
    config = model.config.get_text_config()
    coefficient = config.to_dict().get("router_aux_loss_coef")
    yield
    if coefficient is not None:
        config.router_aux_loss_coef = coefficient


@contextmanager
def adapters_left_float32(model: PreTrainedModel) -> Iterator[None]:
    """Let adapters on quantised weights be float32 where SFTTrainer would make them bfloat16."""
    marks = {"is_loaded_in_4bit": False, "is_loaded_in_8bit": False}
    if not isinstance(model, PeftModel):
        yield
        return
    vars(model).update(marks)
    try:
        yield
    finally:
        for name in marks:
            del vars(model)[name]
