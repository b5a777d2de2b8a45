"""Optimisers in 8 bits and on bfloat16 weights: what they move, and that they resume bit by bit."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stages.distributed.optimizers import (
    REMAINDER,
    AdamKind,
    round_at_random_into,
    round_into,
    widened,
)
from stages.distributed.state import gather_moments, gather_weights, scatter_moments
from stages.distributed.state import scatter_weights as set_weights

KINDS = [
    AdamKind(name, masters, seed=3)
    for name in ("adamw", "adamw_8bit", "paged_adamw_8bit")
    for masters in ("fp32", "kahan", "stochastic")
]
IDS = [f"{kind.name}-{kind.masters}" for kind in KINDS]
STEPS = 100


def parameters(dtype: torch.dtype) -> dict[str, nn.Parameter]:
    """A matrix that 8-bit moments take, and a vector too short for them, in float32."""
    generator = torch.Generator().manual_seed(0)
    matrix = (torch.randn(80, 64, generator=generator) * 0.05).bfloat16()
    return {"matrix": nn.Parameter(matrix.to(dtype)), "vector": nn.Parameter(torch.ones(7))}


def dtype_of(kind: AdamKind) -> torch.dtype:
    return torch.float32 if kind.masters == "fp32" else torch.bfloat16


def built(kind: AdamKind, of: dict[str, nn.Parameter], rate: float) -> Any:
    settings = {"betas": (0.9, 0.95), "eps": 1e-5, "weight_decay": 0.0}
    optimizer = kind.build(list(of.values()), fused=True, **settings)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return optimizer


def steps(optimizer: Any, of: dict[str, nn.Parameter], numbers: range) -> None:
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for parameter in of.values():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient.bfloat16().to(parameter.dtype)
        optimizer.step()


def realised(optimizer: Any, parameter: nn.Parameter, rate: float) -> float:
    """The share of the move that equal steps want which the weights make, on average."""
    before = parameter.detach().float().clone()
    for _ in range(STEPS):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    remainder = optimizer.state[parameter].get(REMAINDER)
    after = widened(parameter.detach(), remainder)
    return float((before - after).mean()) / (rate * STEPS)


@pytest.mark.parametrize("rate", [9e-6, 1e-6])
@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_equal_steps_move_weights_as_far_as_they_should(kind: AdamKind, rate: float) -> None:
    own = parameters(dtype_of(kind))
    share = realised(built(kind, own, rate), own["matrix"], rate)
    # Stochastic rounding: a standard error of 4 % at the lower rate.
    assert share == pytest.approx(1.0, abs=0.1 if kind.masters == "stochastic" else 0.02)


@pytest.mark.parametrize("rate", [9e-6, 1e-6])
def test_plain_bfloat16_would_lose_most_of_it(rate: float) -> None:
    matrix = parameters(torch.bfloat16)["matrix"]
    plain = torch.optim.AdamW([matrix], rate, (0.9, 0.95), 1e-5, 0.0, fused=True)
    assert realised(plain, matrix, rate) < 0.2


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_weights_with_their_remainders_are_those_of_float32_bit_by_bit(name: Any) -> None:
    ends = []
    for masters in ("fp32", "kahan"):
        kind = AdamKind(name, masters)
        own = parameters(dtype_of(kind))
        optimizer = built(kind, own, 3e-4)
        steps(optimizer, own, range(20))
        remainder = optimizer.state[own["matrix"]].get(REMAINDER)
        ends.append((widened(own["matrix"].data, remainder), own["vector"].data))
    assert all(torch.equal(wide, split) for wide, split in zip(*ends, strict=True))


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_what_was_saved_in_the_middle_ends_as_an_unbroken_run(kind: AdamKind) -> None:
    whole = parameters(dtype_of(kind))
    steps(built(kind, whole, 1e-4), whole, range(8))

    first = parameters(dtype_of(kind))
    optimizer = built(kind, first, 1e-4)
    steps(optimizer, first, range(5))
    file = io.BytesIO()
    torch.save((gather_weights(first), gather_moments(first, optimizer)), file)
    file.seek(0)
    weights, moments = torch.load(file, weights_only=True)

    second = parameters(dtype_of(kind))
    resumed = built(kind, second, 1e-4)
    steps(resumed, second, range(1))  # as after a rollback: it must not matter
    set_weights(second, weights)
    scatter_moments(second, resumed, moments)
    steps(resumed, second, range(5, 8))
    assert all(torch.equal(whole[name], second[name]) for name in whole)


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int32)


def test_a_weight_and_its_remainder_are_any_float32_exactly() -> None:
    generator = torch.Generator().manual_seed(1)
    wide = torch.randn(4096, generator=generator) * torch.logspace(-30, 30, 4096)
    ties = torch.tensor([0x3F808000, 0x3F818000, -0x407F8000, 0, 1, 0x7F7EFFFF]).int()
    wide = torch.cat([wide, ties.view(torch.float32)])
    narrow, remainder = wide.bfloat16(), torch.empty(len(wide), dtype=torch.int16)
    round_into(narrow, remainder, wide)
    assert torch.equal(bits(widened(narrow, remainder)), bits(wide))
    assert ((narrow.float() - wide).abs() <= wide.abs() * 2**-8 + 1e-40).all()


def test_rounding_at_random_is_right_on_average_and_leaves_bfloat16_alone() -> None:
    generator = torch.Generator().manual_seed(2)
    wide = torch.full((40_000,), 1.0 + 0.3 * 2**-7)
    narrow = torch.empty(40_000, dtype=torch.bfloat16)
    round_at_random_into(narrow, wide, generator)
    assert set(narrow.tolist()) == {1.0, 1.0 + 2**-7}
    assert float((narrow == 1.0).float().mean()) == pytest.approx(0.7, abs=0.01)
    exact = torch.randn(1000, generator=generator).bfloat16()
    round_at_random_into(narrow[:1000], exact.float(), generator)
    assert torch.equal(narrow[:1000], exact)


def test_what_shards_moments_takes_torchs_adamw_alone() -> None:
    AdamKind().require_plain("zero")
    with pytest.raises(ValueError, match="optimizer is adamw_8bit and precision"):
        AdamKind("adamw_8bit").require_plain("zero")
