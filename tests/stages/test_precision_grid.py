"""Every stage in every precision: tiny models through all three, as in float32 but for rounding."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from safetensors.torch import load_file
from torch import Tensor, nn

from reward_models.model import RewardModel
from reward_models.weights.formats import WeightFormat, quantised_layers
from stages.adapters.config import Full, LoRA, Prefix
from stages.data.padding import pad_right, positions
from stages.models import load_policy
from stages.progress import Report
from tests.stages.adapters.family_cells import Cell, Listener, PowerCutError, save_base

PRECISIONS: dict[str, dict[str, str]] = {
    "fp32": {},
    "bf16": {"compute": "bf16"},
    "nf4": {"weights": "nf4"},
    "int8": {"weights": "int8"},
    "kahan": {"compute": "bf16", "masters": "kahan"},
    "stochastic": {"compute": "bf16", "masters": "stochastic"},
}
FORMATS = {
    "fp32": WeightFormat(),
    "bf16": WeightFormat(torch.bfloat16),
    "nf4": WeightFormat(torch.float32, "nf4"),
    "int8": WeightFormat(torch.float32, "int8"),
}
ADAPTATIONS = {"full": Full(), "lora": LoRA(rank=2, alpha=4.0), "prefix": Prefix(length=3)}
GRID = [
    (precision, name)
    for precision in PRECISIONS
    for name in ADAPTATIONS
    if precision in ("fp32", "bf16") or (name == "full") is (precision in ("kahan", "stochastic"))
]
USUAL = [("bf16", "full"), ("nf4", "lora"), ("kahan", "full")]  # in the ordinary tests
CELLS = [
    pytest.param(cell, id="-".join(cell), marks=() if cell in USUAL else pytest.mark.slow)
    for cell in GRID
]
# The largest gap from float32's outputs. That of 4 bits is the gap of the weights, which are random
# here and few: they are held to the same weights, rounded to 4 bits, in float32.
GAP = {"fp32": 1e-5, "bf16": 2.5e-2, "int8": 6e-2}


@dataclass
class PreciseCell(Cell):
    """The stages of one adaptation in one precision."""

    precision: dict[str, str] = field(default_factory=dict)

    def run(self, stage: str, out: Path, report: Report) -> None:
        stages: dict[str, Any] = {"sft": self.sft, "reward": self.reward, "ppo": self.ppo}
        stages[stage](out, report, precision=self.precision)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], PreciseCell]:
    folder = tmp_path_factory.mktemp("precisions")
    base = save_base("llama", folder / "base")
    return {
        (precision, name): PreciseCell(
            base,
            ADAPTATIONS[name],
            folder / f"{precision}-{name}",
            precision=PRECISIONS[precision],
        )
        for precision, name in GRID
    }


def rows() -> tuple[Tensor, Tensor, Tensor]:
    ids_BL, mask_BL = pad_right([[3, 9, 4, 23, 5], [7, 23], [24, 6, 11]], pad_id=0)
    return ids_BL, mask_BL, positions(mask_BL)


def logits(folder: Path, weights: str) -> Tensor:
    ids_BL, mask_BL, position_BL = rows()
    model = load_policy(folder, weights=FORMATS.get(weights, FORMATS["nf4"]))
    if weights == "dequantised":
        dequantise(model)
    with torch.no_grad():
        output = model(input_ids=ids_BL, attention_mask=mask_BL.long(), position_ids=position_BL)
    return output.logits[mask_BL].float()


def scores(folder: Path, weights: str) -> Tensor:
    model = RewardModel.load(folder, weights=FORMATS.get(weights, FORMATS["nf4"]))
    if weights == "dequantised":
        dequantise(model)
    with torch.no_grad():
        score_B: Tensor = model(*rows())
    return score_B


def dequantise(model: nn.Module) -> None:
    """Put float32 matrices with the values of the 4-bit ones in their place."""
    quantised = {id(layer) for layer in quantised_layers(model)}
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if id(layer) in quantised:
                plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
                plain.weight.data = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
                if layer.bias is not None:
                    plain.bias.data = layer.bias.data
                setattr(parent, name, plain)


def furthest(a: Tensor, b: Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("cell", CELLS)
def test_losses_fall_and_ppo_starts_where_the_rollout_was(cell, cells):
    stages = cells[cell]
    supervised = stages.steps("sft").of("sft/loss_nats_per_token")
    assert sum(supervised[-3:]) < 0.98 * sum(supervised[:3])
    ranking = stages.steps("reward").of("reward/loss_nats_per_pair")
    assert sum(ranking[-4:]) < 0.98 * sum(ranking[:4])
    ppo = stages.steps("ppo")
    assert ppo.of("ppo/kl_nats")[0] == 0.0
    assert max(ppo.of("ppo/first_ratio_error")) == 0.0
    assert ppo.of("ppo/kl_nats")[-1] != 0.0


@pytest.mark.parametrize("cell", CELLS)
def test_what_was_trained_is_saved_as_it_was_and_loads_in_every_precision(cell, cells):
    precision, adaptation = cell
    policy = cells[cell].trained("ppo") / "model"
    reward = cells[cell].trained("reward") / "model"
    name = "model" if adaptation == "full" else "adapter_model"
    for folder in (policy, reward):
        saved = load_file(folder / f"{name}.safetensors")
        narrow = {torch.bfloat16} if precision in ("kahan", "stochastic") else set()
        assert {tensor.dtype for tensor in saved.values()} <= {torch.float32, *narrow}
    for other in FORMATS:
        plain = "dequantised" if other == "nf4" else "fp32"
        gap = GAP.get(other, 1e-4)
        assert furthest(scores(reward, other), scores(reward, plain)) <= gap
        assert furthest(logits(policy, other), logits(policy, plain)) <= gap


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_a_killed_stage_ends_with_the_bits_of_an_unbroken_one(stage, cell, cells, tmp_path):
    stages = cells[cell]
    unbroken = stages.trained(stage)
    total = max(step.total for step in stages.reports[stage].steps)
    with pytest.raises(PowerCutError):
        stages.run(stage, tmp_path, Listener(cut_after=total - 1))
    stages.run(stage, tmp_path, Listener())
    for path in sorted((unbroken / "model").glob("*.safetensors")):
        one, other = load_file(path), load_file(tmp_path / "model" / path.name)
        assert all(torch.equal(one[key], other[key]) for key in one), path.name
