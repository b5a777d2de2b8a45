"""Sampling from packed weights: the same model, quicker."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from stages.config import SamplingConfig
from stages.families import BitFit, Bottleneck, LoRA, Probe, Restricted
from stages.generation import generate_responses
from stages.models import adapt, load_base, load_policy, load_tokenizer
from stages.packed_weights import packed_weights
from tests.reward_models.tiny import tiny_base

FAMILIES = [LoRA(), Bottleneck(), BitFit(), Probe()]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("packed") / "policy")


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        said: torch.Tensor = model(input_ids=torch.tensor([[5, 6, 7], [8, 9, 10]])).logits
    return said


def packed_layers(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if "forward" in vars(module))


def test_packed_layers_say_the_same_and_leave_nothing_behind(policy: Path) -> None:
    model = load_policy(policy)
    before = logits(model)
    with packed_weights(model, 1):
        assert len(list(packed_layers(model))) > 2
        torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)
    assert not list(packed_layers(model))
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.family)
def test_what_a_set_adds_is_added_to_packed_layers_too(policy: Path, family: Restricted) -> None:
    model = adapt(load_base(policy), family, load_tokenizer(policy))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    before = logits(model)
    with packed_weights(model, 1):
        torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)


def test_a_new_weight_is_packed_anew(policy: Path) -> None:
    model = load_policy(policy)
    with packed_weights(model, 1):
        first = logits(model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    plain = logits(model)
    with packed_weights(model, 1):
        torch.testing.assert_close(logits(model), plain, rtol=0, atol=1e-4)
    assert not torch.allclose(plain, first, atol=0.1)


def test_the_same_tokens_are_drawn_with_packing_and_without(policy: Path) -> None:
    model, tokenizer = load_policy(policy), load_tokenizer(policy)
    drawn: list[Any] = []
    for packed_mib in (256, 0):
        sampling = SamplingConfig(max_new_tokens=12, packed_mib=packed_mib)
        generator = torch.Generator().manual_seed(0)
        prompts = [[5, 6, 7], [8, 9], [8, 9]] * 8
        drawn.append(generate_responses(model, tokenizer, prompts, sampling, generator=generator))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("why", ["too large", "16 bits", "autocast", "switched off"])
def test_where_packing_would_not_be_the_same_the_layers_stay(policy: Path, why: str) -> None:
    model = load_policy(policy).to(torch.bfloat16 if why == "16 bits" else torch.float32)
    limit = 0 if why == "switched off" else 1
    if why == "too large":
        model.lm_head = nn.Linear(1024, 1024)  # 4 MiB
    sixteen = torch.autocast("cpu", torch.bfloat16, enabled=why == "autocast")
    with sixteen, packed_weights(model, limit):
        assert not list(packed_layers(model))
