"""The dtypes that a `Precision` means on a device."""

from contextlib import nullcontext

import pytest
import torch

from reward_models.backbone import load_causal_lm, weights_hash
from reward_models.compat import TorchDispatchMode
from reward_models.weights.formats import FLOAT32, WeightFormat, quantised_layers
from stages.adapters.config import Full, LoRA
from stages.models import load_policy
from stages.ppo.models import load_models
from stages.precision import (
    Numerics,
    inference_precision,
    inference_weights,
    narrow_frozen,
    narrowed,
    require_trainable_precision,
    resolved,
)
from stages.precision_config import Precision
from stages.reward import train as reward_stage
from stages.reward.config import RewardConfig
from stages.sft import train as sft_stage
from stages.sft.config import SFTConfig
from tests.reward_models.tiny import tiny_base
from tests.stages.ppo.tiny_ppo import probe_world

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


class Conversions(TorchDispatchMode):
    """Counts conversions of matrices."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_cast = func in (torch.ops.aten._to_copy.default, torch.ops.aten.to.dtype)
        if is_cast and args[0].dim() == 2 and min(args[0].shape) >= 16:
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_decoding_under_autocast_converts_every_matrix_once_and_changes_no_bit(tmp_path):
    model, numerics = load_policy(tiny_base(tmp_path)), resolved(Precision(compute="bf16"), CPU)
    ids_BL = torch.tensor([[3, 4, 5]])
    logits, counts = [], []
    for copies in (nullcontext(), narrowed(model, numerics.compute)):
        with torch.inference_mode(), Conversions() as casts, numerics.autocast(model), copies:
            logits.append([model(ids_BL).logits for _ in range(4)][-1])
            counts.append(casts.count)
    assert torch.equal(*logits)
    matrices = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    assert counts == [4 * matrices, matrices]
    assert model.lm_head.weight.dtype == torch.float32


def test_a_frozen_model_in_narrow_matrices_is_bit_equal_under_autocast(tmp_path):
    base = tiny_base(tmp_path, tied=True)
    wide, narrow = load_policy(base), load_policy(base).requires_grad_(False)
    numerics = resolved(Precision(compute="bf16"), CPU)
    narrow_frozen([narrow], torch.bfloat16, unless_in=[])
    assert narrow.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert narrow.lm_head.weight.dtype == torch.float32  # the embedding's
    with torch.no_grad(), numerics.autocast(wide):
        ids_BL = torch.tensor([[3, 4, 5]])
        assert torch.equal(wide(ids_BL).logits, narrow(ids_BL).logits)


@pytest.mark.parametrize("quantised", ["nf4", "int8"])
def test_the_four_roles_of_ppo_hold_a_quantised_backbone_once(tmp_path, quantised):
    policy, reward = probe_world(tmp_path)
    numerics = Numerics(WeightFormat(quantised=quantised))
    models = load_models(policy, reward, LoRA(rank=2), seed=0, device=CPU, numerics=numerics)
    roles = (models.policy, models.reference, models.critic, models.reward)
    memories = [{one.weight.data_ptr() for one in quantised_layers(role)} for role in roles]
    assert memories[0]
    assert all(memory == memories[0] for memory in memories)


@pytest.mark.parametrize("quantised", ["nf4", "int8"])
def test_a_base_has_one_hash_in_every_format(tmp_path, quantised):
    base = tiny_base(tmp_path)
    narrow = load_causal_lm(base, WeightFormat(torch.bfloat16, quantised))
    assert weights_hash(narrow) == weights_hash(load_causal_lm(base))
