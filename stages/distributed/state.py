"""Weights and Adam's moments, gathered from whatever shards them and scattered back into it.

    parameters = named_shards(model)                   {name: parameter}
    weights = gather_weights(parameters)               {name: full tensor}
    moments = gather_moments(parameters, optimizer)    {name: {"step", "exp_avg", "exp_avg_sq"}}
    scatter_weights(parameters, weights)
    scatter_moments(parameters, optimizer, moments)

One format whatever the sharding, torch's own with names in place of numbers: float32, full, on the
CPU. So what ZeRO-3 over four processes wrote, one plain process reads, and the other way round.

`parameters`, all of a model or some, have the same names in the same order on all ranks: plain ones
(one process, data-parallel), those of a DeepSpeed engine (ZeRO-1, 2, 3, offloaded or not) or of
FSDP2, trained or frozen. `optimizer` is torch's AdamW, bare or as DeepSpeed and accelerate wrap it.
Where nothing is sharded it may be any other, whose state is saved as it is (see `optimizers`).
Every rank calls. Only rank 0 gets what is gathered (the others get {}), and only its `weights` and
`moments` are read (the others may pass {}). One tensor at a time is full on devices.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW, Optimizer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from stages.distributed import compat
from stages.distributed.compat import MOMENTS, full_shape, is_updated_by_zero
from stages.distributed.optimizers import restored_state, saved_state

Parameters = Mapping[str, nn.Parameter]
Moments = Mapping[str, Mapping[str, Any]]


def let_models_load_whole() -> None:
    """Let `from_pretrained` load a model whole, also in a process that trains under ZeRO-3.

    TrainingArguments and Trainer announce ZeRO-3 to transformers, which then divides a model as it
    is loaded: adapters, heads and hashes need full weights, and rank 0 reads checkpoints alone.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]


def named_shards(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters as the optimizer has them: FSDP2 leaves some full after a forward.

    A tied parameter appears once.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return dict(model.named_parameters())


def gather_weights(parameters: Parameters) -> dict[str, Tensor]:
    """Return every parameter in full on rank 0, of a float32 master where there is one.

    To be saved or copied before the next step: what is full on the CPU already is not copied.
    """
    weights = {}
    for name, parameter in parameters.items():
        held_by_zero = _is_held_by_zero(parameter)
        full = compat.zero_weight(parameter) if held_by_zero else _full(parameter.detach())
        if is_main_process():
            weights[name] = _on_cpu(full)
    return weights


def gather_moments(parameters: Parameters, optimizer: Any) -> dict[str, dict[str, Any]]:
    """Return Adam's state of every parameter that was updated, in full on rank 0; as above."""
    adam, zero = compat.unwrap_optimizer(optimizer)
    if not isinstance(adam, AdamW):
        _require_whole(parameters, adam)
        return {name: saved_state(adam.state[p]) for name, p in parameters.items() if adam.state[p]}
    if zero is not None:
        compat.link_zero_moments(adam, zero)
    moments = {}
    for name, parameter in parameters.items():
        if is_updated_by_zero(parameter):
            state = compat.zero_moments(parameter, adam)
        else:
            state = {key: _full(value) for key, value in adam.state.get(parameter, {}).items()}
        if is_main_process() and state:
            moments[name] = {key: _on_cpu(value) for key, value in state.items()}
    return moments


@torch.no_grad()
def scatter_weights(parameters: Parameters, weights: Mapping[str, Tensor]) -> None:
    """Set the parameters to rank 0's `weights`; ValueError where one is missing there."""
    if is_main_process() and (missing := [name for name in parameters if name not in weights]):
        raise ValueError(f"no weights for {len(missing)} parameters, the first is {missing[0]}")
    for name, parameter in parameters.items():
        full = _from_rank_0(weights.get(name), full_shape(parameter))
        if _is_held_by_zero(parameter):
            compat.set_zero_weight(parameter, full)
        else:
            _copy(parameter.detach(), full)


def scatter_moments(parameters: Parameters, optimizer: Any, moments: Moments) -> None:
    """Set Adam's state to rank 0's `moments`; a parameter that has none there starts afresh."""
    adam, zero = compat.unwrap_optimizer(optimizer)
    if not isinstance(adam, AdamW):
        _require_whole(parameters, adam)
        _scatter_as_it_is(parameters, adam, moments)
        return
    names: list[Any] = [list(moments)]
    if dist.is_initialized():
        dist.broadcast_object_list(names, src=0)
    if zero is not None and names[0]:
        step = next(iter(moments.values()))["step"] if is_main_process() else None
        compat.init_zero_moments(adam, zero, _from_rank_0(step, torch.Size()))
    for name, parameter in parameters.items():
        if name not in names[0]:
            _reset_moments(parameter, adam)
            continue
        own = moments[name] if is_main_process() else {}
        shape = full_shape(parameter)
        full = {key: _from_rank_0(own.get(key), shape) for key in MOMENTS}
        step = _from_rank_0(own.get("step"), torch.Size())
        if is_updated_by_zero(parameter):
            for key, value in full.items():
                compat.set_zero_shard(parameter, value, key)
        else:
            on_device = adam.defaults["fused"] or adam.defaults["capturable"]
            state = {key: torch.zeros_like(parameter.detach()) for key in MOMENTS}
            for key, value in full.items():
                _copy(state[key], value)
            step = step.to(parameter.device) if on_device else step.cpu()
            adam.state[parameter] = {"step": step, **state}


def _scatter_as_it_is(parameters: Parameters, optimizer: Optimizer, moments: Moments) -> None:
    """Set the state of another optimizer than torch's AdamW, which every rank holds whole."""
    for name, parameter in parameters.items():
        state: list[Any] = [moments.get(name)]
        if dist.is_initialized():
            dist.broadcast_object_list(state, src=0)
        optimizer.state.pop(parameter, None)
        if state[0]:
            optimizer.state[parameter] = restored_state(optimizer, parameter, state[0])


def _require_whole(parameters: Parameters, optimizer: Optimizer) -> None:
    """Raise ValueError where FSDP2 shards the state of another optimizer than torch's AdamW."""
    if any(isinstance(parameter.data, DTensor) for parameter in parameters.values()):
        raise ValueError(f"the optimizer is {type(optimizer).__name__}; expected torch's AdamW")


def is_main_process() -> bool:
    """Return true in the process that writes: rank 0, or one that is alone."""
    return not dist.is_initialized() or dist.get_rank() == 0


def _is_held_by_zero(parameter: nn.Parameter) -> bool:
    return compat.is_partitioned(parameter) or is_updated_by_zero(parameter)


def _reset_moments(parameter: nn.Parameter, adam: torch.optim.AdamW) -> None:
    if not is_updated_by_zero(parameter):
        adam.state.pop(parameter, None)
    elif any(adam.state.values()):
        for key in MOMENTS:
            compat.set_zero_shard(parameter, torch.zeros(full_shape(parameter)), key)


def _full(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _copy(target: Tensor, full: Tensor) -> None:
    """Copy `full`, which every rank has, into a plain tensor or into this rank's shard."""
    if isinstance(target, DTensor):
        parts = distribute_tensor(full, target.device_mesh, target.placements, src_data_rank=None)
        target.to_local().copy_(parts.to_local())
    else:
        target.copy_(full)


def _from_rank_0(value: Tensor | None, shape: torch.Size) -> Tensor:
    """Return rank 0's tensor on every rank, as float32 on this rank's device."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    if value is None:
        value = torch.empty(shape)
    assert value.shape == shape, f"a tensor of shape {tuple(value.shape)} for {tuple(shape)}"
    full = value.to(device=device, dtype=torch.float32, copy=True)
    if dist.is_initialized():
        dist.broadcast(full, src=0)
    return full


def _on_cpu(value: Tensor) -> Tensor:
    return value.detach().to(device="cpu", dtype=torch.float32)
