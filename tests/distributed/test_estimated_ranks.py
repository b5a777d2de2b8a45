"""The estimate of a rank's weights, gradients and Adam, against what ranks hold."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.estimate.model_size import model_size
from pipeline.estimate.sharded import StageMemory
from pipeline.estimate.stages import FLOAT
from stages.adapters.config import Full, LoRA, Restricted
from tests.distributed.ranks import Sharding, run_ranks
from tests.reward_models.tiny import tiny_base

pytestmark = [pytest.mark.distributed, pytest.mark.deepspeed]
WITHIN = 0.02  # DeepSpeed fills up what does not divide
SHORT: list[Any] = [("zero2", "full", 2), ("zero3", "full", 2), ("zero3", "lora", 2)]
ALL: list[Any] = [
    (sharding, family, ranks)
    for sharding in ("ddp", "zero1", "zero2", "zero3", "fsdp2")
    for family in ("full", "lora")
    for ranks in (2, 4)
]


@dataclass(frozen=True)
class Held:
    """Bytes of one rank after a backward pass and a step."""

    weights: int
    gradients: int
    optimizer: int
    largest: int  # trained parameter


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough that what is divided outweighs what fills up."""
    shape = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    return tiny_base(tmp_path_factory.mktemp("base"), **shape, **heads)


def adaptation(family: str) -> Full | Restricted:
    return Full() if family == "full" else LoRA(rank=8)


def held(base: Path, family: str) -> Held:
    from accelerate import Accelerator

    from stages.distributed.compat import full_shape
    from stages.distributed.sharding import load_models_whole, sharded_network
    from stages.models import adapt, load_policy, load_tokenizer

    accelerator = Accelerator()
    load_models_whole(accelerator)
    model = adapt(load_policy(base), adaptation(family), load_tokenizer(base))
    engine = sharded_network(model, 1.0, accelerator)
    ids_BL = torch.zeros(2, 5, dtype=torch.long)
    for last in (False, True):
        engine.backward(engine.model(input_ids=ids_BL, labels=ids_BL).loss)
        gradients = of_gradients(model, engine.optimizer)
        if not last:
            engine.step(1e-4)
    weights = sum(local(p).nbytes for p in model.parameters())
    largest = max(full_shape(p).numel() for p in model.parameters() if p.requires_grad) * FLOAT
    return Held(weights, gradients, of_optimizer(engine.optimizer), largest)


def local(p: nn.Parameter) -> Tensor:
    """Return this rank's part of a parameter."""
    part = vars(p).get("ds_tensor", p.detach())
    tensor: Tensor = part.to_local() if hasattr(part, "to_local") else part
    return tensor


def of_gradients(model: nn.Module, optimizer: Any) -> int:
    """In the parameters, or in the partitions that DeepSpeed keeps."""
    tensors = [p.grad for p in model.parameters() if p.grad is not None]
    tensors = [g.to_local() if hasattr(g, "to_local") else g for g in tensors]
    state = vars(optimizer)
    if state.get("partition_gradients"):
        for name in ("averaged_gradients", "all_grad_tensors"):
            for parts in state.get(name, {}).values():
                tensors += [part for part in parts or () if part is not None]
    if "grad_partitions_flat_buffer" in state:
        tensors.append(state["grad_partitions_flat_buffer"])
    return sum(part.nbytes for part in tensors)


def of_optimizer(optimizer: Any) -> int:
    """Adam's moments, and the float32 copies of weights that DeepSpeed updates."""
    from stages.distributed.compat import unwrap_optimizer

    adam, zero = unwrap_optimizer(optimizer)
    moments = [
        x.to_local() if hasattr(x, "to_local") else x
        for state in adam.state.values()
        for name, x in state.items()
        if name != "step"
    ]
    state = {} if zero is None else vars(zero)
    masters = state.get("single_partition_of_fp32_groups", [])
    masters = [*masters, *state.get("fp32_partitioned_groups_flat", [])]
    return sum(x.nbytes for x in (*moments, *masters))


@pytest.mark.parametrize(
    ("sharding", "family", "ranks"),
    [*SHORT, *(pytest.param(*one, marks=pytest.mark.slow) for one in ALL if one not in SHORT)],
)
def test_a_rank_holds_what_was_estimated(base: Path, sharding: Sharding, family: str, ranks: int):
    counts = model_size(base, adaptation(family))
    trained = counts.trainable * FLOAT
    whole = StageMemory(
        "ppo",
        weights=counts.parameters * FLOAT,
        gradients=trained,
        optimizer=2 * trained,
        activations=0,
        masters=trained,
        in_buckets=False,
    )
    estimated = whole.sharded(sharding, ranks)
    for rank in run_ranks(held, base, family, processes=ranks, sharding=sharding, timeout_s=200):
        print(f"{sharding} {family} {ranks}: {rank}")
        assert rank.weights == pytest.approx(estimated.weights, rel=WITHIN)
        assert rank.optimizer == pytest.approx(estimated.optimizer, rel=WITHIN, abs=64 * FLOAT)
        # under ZeRO-2 two ranks hold that of a parameter which lies on their border
        border = 2 * rank.largest if sharding == "zero2" else WITHIN * estimated.gradients
        assert rank.gradients == pytest.approx(estimated.gradients, abs=border)
