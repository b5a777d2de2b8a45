"""Weights and moments go from any sharding to any other, plain torch AdamW being the truth."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from stages.distributed.state import (
    gather_moments,
    gather_weights,
    is_main_process,
    named_shards,
    scatter_moments,
    scatter_weights,
)
from tests.distributed.ranks import SHARDINGS, Sharding, run_ranks

State = tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]
SHARDED = [name for name in SHARDINGS if name != "ddp"]


class Net(nn.Module):
    """Sizes that no number of ranks divides, a frozen layer, and a parameter of its own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inner = nn.Linear(5, 7)
        self.frozen = nn.Linear(7, 7).requires_grad_(False)
        self.outer = nn.Linear(7, 3)
        self.shift = nn.Parameter(torch.randn(1))

    def forward(self, x_BD: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.frozen(self.inner(x_BD)))) + self.shift


def adam(model: nn.Module) -> torch.optim.AdamW:
    """Two groups, as trainers make them: biases do not decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))


def batch(step: int) -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(step))


def train(model: nn.Module, optimizer: Any, engine: Any, first: int, last: int) -> None:
    for step in range(first, last):
        loss = (model if engine is None else engine)(batch(step)).square().mean()
        if engine is None:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        else:
            engine.backward(loss)
            engine.step()


def prepared(sharding: Sharding, seed: int) -> tuple[nn.Module, Any, Any]:
    """Model, optimizer and engine, sharded as accelerate would; all ranks see the same batches."""
    model = Net(seed)
    match sharding:
        case "none":
            return model, adam(model), None
        case "fsdp2":
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            torch.distributed.init_process_group("gloo")
            mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
            fully_shard(model.outer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            return model, adam(model), None
        case _:
            import deepspeed
            from accelerate import DeepSpeedPlugin

            deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
            settings = DeepSpeedPlugin().deepspeed_config
            settings |= {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1}
            settings["gradient_clipping"] = 0.0
            engine, optimizer, _, _ = deepspeed.initialize(
                model=model, optimizer=adam(model), config=settings
            )
            return model, optimizer, engine


def gathered(sharding: Sharding, begun: State | None, first: int, last: int) -> State:
    """Train some steps, from `begun` if it is given, and return the whole state."""
    model, optimizer, engine = prepared(sharding, seed=0 if begun is None else 1)
    named = named_shards(model)
    trained = {name: p for name, p in named.items() if p.requires_grad}
    if begun is not None:
        weights, moments = begun if is_main_process() else ({}, {})
        scatter_weights(named, weights)
        scatter_moments(trained, optimizer, moments)
    train(model, optimizer, engine, first, last)
    assert list(named_shards(model).values()) == list(named.values())
    results = gather_weights(named), gather_moments(trained, optimizer)
    assert is_main_process() or results == ({}, {})
    return results


def away(results: State, truth: State) -> float:
    def flat(state: State) -> dict[str, Tensor]:
        moments = {f"{name} {key}": x for name, held in state[1].items() for key, x in held.items()}
        return state[0] | moments

    found_flat, truth_flat = flat(results), flat(truth)
    assert found_flat.keys() == truth_flat.keys()
    assert all(found_flat[name].shape == x.shape for name, x in truth_flat.items())
    return max(float((found_flat[name] - x).abs().max()) for name, x in truth_flat.items())


def names_of_trained() -> set[str]:
    return {name for name, p in Net(0).named_parameters() if p.requires_grad}


@pytest.mark.distributed
@pytest.mark.parametrize("sharding", SHARDED)
def test_what_ranks_gather_is_what_one_process_has_and_it_can_go_on_from_it(sharding: Sharding):
    truth = gathered("none", None, 0, 3)
    results = run_ranks(gathered, sharding, None, 0, 3, processes=2, sharding=sharding)[0]
    assert set(results[1]) == names_of_trained()
    assert float(results[1]["shift"]["step"]) == 3.0
    assert away(results, truth) < 1e-6
    on = gathered("none", cast(State, results), 3, 5)
    assert away(on, gathered("none", None, 0, 5)) < 1e-6


@pytest.mark.distributed
@pytest.mark.parametrize("sharding", SHARDED)
def test_ranks_go_on_from_what_one_process_wrote(sharding: Sharding):
    begun = gathered("none", None, 0, 3)
    on = run_ranks(gathered, sharding, begun, 3, 5, processes=2, sharding=sharding)[0]
    assert away(on, gathered("none", None, 0, 5)) < 1e-6
