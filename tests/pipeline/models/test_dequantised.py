"""Exports of what was trained on quantised weights: the plain model has the same outputs."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pipeline.models.policies import export_model
from reward_models.model import RewardModel
from reward_models.weights.formats import WeightFormat
from stages.adapters.config import LoRA
from stages.models import adapt, load_policy, save_policy
from tests.reward_models.tiny import tiny_base, tiny_tokenizer

IDS = torch.tensor([[5, 6, 7, 8, 3, 9, 10, 11]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base") / "base")


def quantised(base: Path, kind: str, folder: Path) -> Path:
    """The base as bitsandbytes saves it."""
    load_policy(base, weights=as_format(kind)).save_pretrained(str(folder))
    tiny_tokenizer().save_pretrained(str(folder))
    return folder


def as_format(kind: str) -> WeightFormat:
    return WeightFormat(torch.float32, "nf4" if kind == "nf4" else "int8")


def trained(model: nn.Module) -> None:
    """Draw adapters anew: new ones change nothing."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(0.0, 0.3)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(input_ids=IDS).logits
    return output


def furthest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def adapter_on(base: Path, folder: Path, weights: WeightFormat | None = None) -> Path:
    torch.manual_seed(0)
    policy = adapt(load_policy(base, weights=weights or WeightFormat()), LoRA(rank=2))
    trained(policy)
    save_policy(policy, tiny_tokenizer(), folder)
    return folder


@pytest.mark.parametrize(("kind", "gap"), [("nf4", 1e-4), ("int8", 6e-2)])
@pytest.mark.parametrize("adapted", [True, False])
def test_a_policy_on_a_quantised_base_leaves_as_plain_weights(
    kind, gap, adapted, base, tmp_path, caplog
):
    folder = quantised(base, kind, tmp_path / "quantised")
    if adapted:
        folder = adapter_on(folder, tmp_path / "adapter")
    with caplog.at_level(logging.WARNING):
        out = export_model(folder, tmp_path / "out")
    assert "quantised weights were dequantised" in caplog.text
    assert all(
        tensor.is_floating_point() for tensor in load_file(out / "model.safetensors").values()
    )
    plain = AutoModelForCausalLM.from_pretrained(str(out))
    assert furthest(logits(plain), logits(load_policy(folder))) <= gap
    assert furthest(logits(plain), logits(load_policy(base))) > 1e-3


def test_a_reward_model_on_a_quantised_base_leaves_as_plain_weights(base, tmp_path):
    folder = quantised(base, "nf4", tmp_path / "quantised")
    reward = RewardModel.on(adapt(load_policy(folder), LoRA(rank=2)), 1, base=str(folder))
    trained(reward)
    reward.save(tmp_path / "reward", tiny_tokenizer())
    out = export_model(tmp_path / "reward", tmp_path / "out")
    plain = AutoModelForSequenceClassification.from_pretrained(str(out), num_labels=1).eval()
    position = torch.arange(IDS.shape[1])[None]
    with torch.no_grad():
        score = reward.eval()(IDS, torch.ones_like(IDS).bool(), position)
    assert furthest(logits(plain), score) <= 1e-4


def test_an_adapter_trained_on_a_base_loaded_in_4_bits_leaves_on_the_base_s_own_weights(
    base, tmp_path, caplog
):
    folder = adapter_on(base, tmp_path / "adapter", as_format("nf4"))
    out = export_model(folder, tmp_path / "out")
    assert "dequantised" not in caplog.text
    plain = AutoModelForCausalLM.from_pretrained(str(out))
    assert furthest(logits(plain), logits(load_policy(folder))) <= 1e-5
    assert furthest(logits(plain), logits(load_policy(folder, weights=as_format("nf4")))) > 1e-3
