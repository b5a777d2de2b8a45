"""The dtypes that a `Precision` means on a device."""

import pytest
import torch

from reward_models.weights.formats import FLOAT32, WeightFormat
from stages.adapters.config import Full, LoRA
from stages.precision import (
    Numerics,
    inference_precision,
    inference_weights,
    require_trainable_precision,
    resolved,
)
from stages.precision_config import Precision
from stages.reward import train as reward_stage
from stages.reward.config import RewardConfig
from stages.sft import train as sft_stage
from stages.sft.config import SFTConfig

CPU, CUDA, MPS = (torch.device(kind) for kind in ("cpu", "cuda", "mps"))
BF16 = WeightFormat(torch.bfloat16)


@pytest.fixture(autouse=True)
def products_as_before():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def on_card(monkeypatch: pytest.MonkeyPatch, *, bf16: bool) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: bf16)


def test_a_new_card_computes_in_bf16_and_trains_float32(monkeypatch):
    on_card(monkeypatch, bf16=True)
    auto = resolved(Precision(), CUDA)
    assert auto == Numerics(BF16, torch.bfloat16)
    assert auto.of(LoRA()) == BF16
    assert auto.mixed_precision(auto.of(LoRA())) == "no"
    assert auto.of(Full()) == FLOAT32
    assert auto.mixed_precision(auto.of(Full())) == "bf16"
    assert torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("device", [CPU, MPS, CUDA], ids=str)
def test_other_devices_compute_in_float32(device, monkeypatch):
    on_card(monkeypatch, bf16=False)
    auto = resolved(Precision(), device)
    assert auto == Numerics()
    assert auto.mixed_precision(auto.of(Full())) == auto.mixed_precision(auto.of(LoRA())) == "no"
    assert not torch.backends.cuda.matmul.allow_tf32


def test_what_is_asked_for_is_what_any_device_does(monkeypatch):
    on_card(monkeypatch, bf16=True)
    for device in (CPU, CUDA):
        assert resolved(Precision(weights="bf16"), device) == Numerics(BF16, torch.bfloat16)
        assert resolved(Precision(weights="fp32"), device) == Numerics()
        assert resolved(Precision(compute="bf16"), device).frozen == BF16
    assert resolved(Precision(weights="nf4"), CPU).frozen == WeightFormat(torch.float32, "nf4")
    assert resolved(Precision(weights="nf4"), CUDA).frozen == WeightFormat(torch.bfloat16, "nf4")
    int8 = resolved(Precision(weights="int8", compute="fp16"), CPU)
    assert int8.frozen == WeightFormat(torch.float16, "int8")


def test_masters_in_16_bits_need_products_in_16_bits():
    kahan = resolved(Precision(masters="kahan", compute="bf16"), CPU)
    assert kahan.of(Full()) == BF16
    assert kahan.mixed_precision(BF16) == "no"
    with pytest.raises(ValueError, match=r"precision.masters is stochastic"):
        resolved(Precision(masters="stochastic"), CPU)


def test_fp16_without_a_scale_is_refused():
    for compute in ("bf16", "fp32"):
        require_trainable_precision(resolved(Precision(compute=compute), CPU))
    with pytest.raises(ValueError, match=r"compute is fp16.*expected bf16 or fp32"):
        require_trainable_precision(resolved(Precision(weights="fp16"), CPU))


def test_on_a_new_card_every_trainer_s_arguments_say_bf16(monkeypatch, tmp_path):
    """The card is a claim: nothing but the arguments is made."""
    on_card(monkeypatch, bf16=True)
    for module in (sft_stage, reward_stage):
        monkeypatch.setattr(module, "device", lambda: CUDA)
    full = sft_stage._arguments(SFTConfig(micro_batch_size=1), tmp_path, 0, validated=False)
    lora = SFTConfig(micro_batch_size=1, adaptation=LoRA())
    frozen = sft_stage._arguments(lora, tmp_path, 0, validated=False)
    ranking = reward_stage._arguments(RewardConfig(), tmp_path, 0)
    assert full.bf16
    assert ranking.bf16
    assert not frozen.bf16  # bfloat16 weights, so that no pass has to convert any


def test_models_that_only_sample_or_score_have_the_precision_of_their_stage(monkeypatch):
    assert inference_weights() == FLOAT32
    with inference_precision(Precision(weights="nf4", compute="bf16")):
        assert inference_weights() == WeightFormat(torch.bfloat16, "nf4")
    on_card(monkeypatch, bf16=True)
    monkeypatch.setattr("stages.precision.device", lambda: CUDA)
    assert inference_weights() == BF16
