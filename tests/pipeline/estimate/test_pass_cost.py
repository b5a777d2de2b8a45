"""The estimated peak of a pass, against what torch's allocator gave a real one."""

from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.estimate.model_size import pass_cost
from reward_models.backbone import transformer
from stages.adapters.config import BitFit, Bottleneck, Full, LoRA, Prefix, Restricted
from stages.distributed.activation_checkpointing import checkpoint_activations
from stages.models import adapt
from tests.reward_models.tiny import tiny_tokenizer
from tests.stages.allocator import allocated_peak

ROWS, TOKENS = 4, 96
WITHIN = 0.10
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    shape = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape, **heads)).save_pretrained(str(folder))
    tiny_tokenizer().save_pretrained(str(folder))
    return folder


FAMILIES = {
    str(adaptation.family): adaptation
    for adaptation in (Full(), LoRA(), Prefix(), Bottleneck(), BitFit())
}
USUAL = [("full", FLOAT32, False), ("lora", BFLOAT16, False), ("lora", BFLOAT16, True)]
CELLS = [
    pytest.param(*cell, marks=() if cell in USUAL else pytest.mark.slow)
    for cell in product(FAMILIES, (FLOAT32, BFLOAT16), (False, True))
]


@pytest.mark.parametrize(("family", "weights", "checkpointing"), CELLS)
def test_the_peak_of_a_pass_is_that_of_the_allocator(
    base: Path,
    tmp_path: Path,
    family: str,
    weights: torch.dtype,
    *,
    checkpointing: bool,
) -> None:
    adaptation = FAMILIES[family]
    model = LlamaForCausalLM.from_pretrained(str(base), dtype=weights)
    measured = peak_of_a_pass(model, adaptation, tmp_path, checkpointing=checkpointing)
    cost = pass_cost(
        base, adaptation, TOKENS, weights=weights, compute=weights, checkpointing=checkpointing
    )
    assert cost.bytes(ROWS) == pytest.approx(measured, rel=WITHIN)


def peak_of_a_pass(
    model: LlamaForCausalLM, adaptation: Full | Restricted, folder: Path, *, checkpointing: bool
) -> int:
    """The allocator's peak, gradients that were there before aside."""
    adapted = adapt(model, adaptation, tiny_tokenizer())
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    backbone = transformer(adapted)
    if checkpointing:
        checkpoint_activations(backbone)

    def work() -> None:
        ids_BL = torch.zeros(ROWS, TOKENS, dtype=torch.long)
        mask_BL = torch.ones_like(ids_BL)
        mask_BL[0, 0] = 0  # a batch with padding has a mask to keep
        state_BLD = backbone(
            input_ids=ids_BL,
            attention_mask=mask_BL,
            position_ids=torch.arange(TOKENS).expand(ROWS, -1),
            use_cache=False,
        ).last_hidden_state
        torch.autograd.backward(state_BLD.float().sum())

    work()  # what is made once is made now
    return allocated_peak(work, folder)
