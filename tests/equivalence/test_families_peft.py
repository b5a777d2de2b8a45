"""Families against PEFT where PEFT has them and is right, and against a plain derivation."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from stages.adapters.bottleneck import BottleneckLayer
from stages.adapters.config import BitFit, Bottleneck, LoRA, Prefix, Prompt, PTuningV2, Restricted
from stages.adapters.prefix import PrefixLayer
from stages.adapters.prompt import PromptLayer
from stages.models import adapt, load_policy, load_tokenizer
from tests.stages.adapters.family_cells import ARCHITECTURES, save_base

IDS_BL = torch.tensor([[5, 6, 7, 3, 9], [8, 3, 9, 10, 11]])


@pytest.fixture(scope="module", params=ARCHITECTURES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(request.param, tmp_path_factory.mktemp(request.param))


def ours(base: Path, adaptation: Restricted) -> PreTrainedModel:
    torch.manual_seed(0)
    return adapt(load_policy(base), adaptation, load_tokenizer(base))


def plain(base: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(str(base))
    return model.eval()


def logits(model: nn.Module, **named: Tensor) -> Tensor:
    output: Tensor = model(input_ids=IDS_BL, **named).logits
    return output


def largest_difference(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).detach().abs().max())


def test_lora_is_pefts(base: Path) -> None:
    model = ours(base, LoRA(rank=2, alpha=4.0))
    config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    peer = get_peft_model(plain(base), config)
    generator = torch.Generator().manual_seed(1)
    own, theirs = model.state_dict(), peer.state_dict()
    for name in (name for name in own if "lora_" in name):
        own[name].copy_(torch.randn(own[name].shape, generator=generator))
        theirs[name].copy_(own[name])
    assert largest_difference(logits(model), logits(peer)) <= 1e-6
    logits(model).sum().backward()
    logits(peer).sum().backward()
    gradients = {name: p.grad for name, p in peer.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, gradients[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("adaptation", [Prefix(length=4), PTuningV2(length=4)])
def test_a_prefix_is_pefts_at_the_same_positions(base: Path, adaptation: Restricted) -> None:
    """PEFT counts the prefix among the positions, so ours gets positions that begin after it."""
    model = ours(base, adaptation)
    config = PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    peer = get_peft_model(plain(base), config)
    layers = [layer for layer in model.modules() if isinstance(layer, PrefixLayer)]
    rows = []
    for layer in layers:
        for made in layer.prefix("default"):  # heads, positions, head size
            with torch.no_grad():
                made.normal_()
            rows.append(made.detach().transpose(0, 1).flatten(1))
    peer.prompt_encoder["default"].embedding.weight.data.copy_(torch.cat(rows, 1))
    positions_BL = torch.arange(IDS_BL.shape[1]).expand(2, -1)
    mask_BL = torch.ones_like(IDS_BL)
    expected = logits(peer, position_ids=positions_BL, attention_mask=mask_BL)
    output = logits(model, position_ids=positions_BL + 4, attention_mask=mask_BL)
    assert largest_difference(output, expected) <= 1e-5


def test_a_soft_prompt_is_pefts_without_padding(base: Path) -> None:
    model = ours(base, Prompt(length=4))
    peer = get_peft_model(
        plain(base), PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    )
    layer = next(layer for layer in model.modules() if isinstance(layer, PromptLayer))
    prompt_PD = layer.soft_prompt["default"]
    peer.prompt_encoder["default"].embedding.weight.data.copy_(prompt_PD.detach())
    expected = logits(peer, attention_mask=torch.ones_like(IDS_BL))[:, 4:]
    output = logits(model, attention_mask=torch.ones_like(IDS_BL))
    assert largest_difference(output, expected) <= 1e-5
    output.log_softmax(-1)[..., 5].sum().backward()
    expected.log_softmax(-1)[..., 5].sum().backward()
    theirs = peer.prompt_encoder["default"].embedding.weight.grad
    assert prompt_PD.grad is not None
    assert torch.allclose(prompt_PD.grad, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
def test_a_bottleneck_adds_the_equation(base: Path, placement: str) -> None:
    """Re-derived in float64 with hooks on a bare model: z + s (W_up relu(W_down z + b) + c)."""
    model = ours(
        base,
        Bottleneck.model_validate(
            {"width": 4, "activation": "relu", "placement": placement, "scaling": 0.7}
        ),
    ).double()
    bare = plain(base).double()
    count = 0
    for name, layer in model.get_base_model().named_modules():
        if not isinstance(layer, BottleneckLayer):
            continue
        count += 1
        down, up = layer.down["default"], layer.up["default"]
        with torch.no_grad():
            for parameter in (*down.parameters(), *up.parameters()):
                parameter.normal_()
        weights = [p.detach().clone() for p in (down.weight, down.bias, up.weight, up.bias)]

        def add(
            _: nn.Module, given: tuple[Tensor, ...], y: Tensor, w: list[Tensor] = weights
        ) -> Tensor:
            z = given[0] if placement == "parallel" else y
            inner = torch.einsum("bld,wd->blw", z, w[0]) + w[1]
            low = torch.where(inner > 0, inner, torch.zeros_like(inner))
            return y + 0.7 * (torch.einsum("blw,dw->bld", low, w[2]) + w[3])

        bare.get_submodule(name).register_forward_hook(add)
    assert count == (4 if placement == "houlsby" else 2)
    assert largest_difference(logits(model), logits(bare)) <= 1e-10


@pytest.mark.parametrize("adaptation", [LoRA(rank=2), BitFit()], ids=["lora", "bitfit"])
def test_a_merged_adapter_keeps_its_outputs(base: Path, adaptation: Restricted) -> None:
    model = ours(base, adaptation)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    before = logits(model)
    assert isinstance(model, PeftModel)
    merged = model.merge_and_unload()
    assert not isinstance(merged, PeftModel)
    assert largest_difference(logits(merged), before) <= 1e-5
