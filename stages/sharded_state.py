"""Weights and Adam's moments, gathered from whatever shards them and put back into it.

    parameters = named_shards(model)                   {name: parameter}
    weights = gather_weights(parameters)               {name: whole tensor}
    moments = gather_moments(parameters, optimizer)    {name: {"step", "exp_avg", "exp_avg_sq"}}
    scatter_weights(parameters, weights)
    scatter_moments(parameters, optimizer, moments)

One format whatever the sharding, torch's own with names in place of numbers: float32, whole, on the
CPU. So what ZeRO-3 over four processes wrote, one plain process reads, and the other way round.

`parameters`, all of a model or some, have the same names in the same order on all ranks: plain ones
(one process, data-parallel), those of a DeepSpeed engine (ZeRO-1, 2, 3, offloaded or not) or of
FSDP2, trained or frozen. `optimizer` is torch's AdamW, bare or as DeepSpeed and accelerate wrap it.
Every rank calls. Only the first gets what is gathered (the others get {}), and only the first
rank's `weights` and `moments` are read (the others may pass {}). One tensor at a time is whole on
devices.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from stages import zero_state
from stages.zero_state import MOMENTS, whole_shape

Parameters = Mapping[str, nn.Parameter]
Moments = Mapping[str, Mapping[str, Tensor]]


def named_shards(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by name, as the optimizer has them: FSDP2 leaves some whole after a forward.

    A tied parameter appears once.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return dict(model.named_parameters())


def gather_weights(parameters: Parameters) -> dict[str, Tensor]:
    """Every parameter whole, on the first rank, of a float32 master where there is one.

    To be saved or copied before the next step: what is whole on the CPU already is not copied.
    """
    found = {}
    for name, parameter in parameters.items():
        whole = _whole_weight(parameter)
        if is_first():
            found[name] = _kept(whole)
    return found


def gather_moments(parameters: Parameters, optimizer: Any) -> dict[str, dict[str, Tensor]]:
    """Adam's state of every parameter that was updated, whole, on the first rank; as above."""
    adam, zero = zero_state.unwrapped(optimizer)
    if zero is not None:
        zero_state.find_moments(adam, zero)
    found = {}
    for name, parameter in parameters.items():
        if zero_state.is_trained(parameter):
            state = zero_state.whole_moments(parameter, adam)
        else:
            state = {key: _whole(value) for key, value in adam.state.get(parameter, {}).items()}
        if is_first() and state:
            found[name] = {key: _kept(value) for key, value in state.items()}
    return found


def scatter_weights(parameters: Parameters, weights: Mapping[str, Tensor]) -> None:
    """Let the parameters hold the first rank's `weights`; ValueError where one is missing there."""
    if is_first():
        missing = [name for name in parameters if name not in weights]
        if missing:
            raise ValueError(f"no weights for {len(missing)} parameters, the first is {missing[0]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            whole = _from_first(weights.get(name), whole_shape(parameter))
            if zero_state.is_partitioned(parameter) or zero_state.is_trained(parameter):
                zero_state.set_weight(parameter, whole)
            else:
                _copy(parameter.detach(), whole)


def scatter_moments(parameters: Parameters, optimizer: Any, moments: Moments) -> None:
    """Let the optimizer go on from the first rank's `moments`; who has none there begins anew."""
    adam, zero = zero_state.unwrapped(optimizer)
    names = _names_of_first(moments)
    if zero is not None and names:
        step = next(iter(moments.values()))["step"] if is_first() else None
        zero_state.begin_moments(adam, zero, _from_first(step, torch.Size()))
    for name, parameter in parameters.items():
        if name not in names:
            _forget(parameter, adam)
            continue
        mine = moments[name] if is_first() else {}
        state = {key: _from_first(mine.get(key), whole_shape(parameter)) for key in MOMENTS}
        step = _from_first(mine.get("step"), torch.Size())
        if zero_state.is_trained(parameter):
            for key, whole in state.items():
                zero_state.set_moment(parameter, whole, key)
        else:
            adam.state[parameter] = _as_adam_keeps_it(parameter, adam, step, state)


def is_first() -> bool:
    """Whether this is the process that writes: the first rank, or one that is alone."""
    return not dist.is_initialized() or dist.get_rank() == 0


def _whole_weight(parameter: nn.Parameter) -> Tensor:
    if zero_state.is_partitioned(parameter) or zero_state.is_trained(parameter):
        return zero_state.whole_weight(parameter)
    return _whole(parameter.detach())


def _as_adam_keeps_it(
    parameter: nn.Parameter, adam: torch.optim.AdamW, step: Tensor, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    on_device = adam.defaults["fused"] or adam.defaults["capturable"]
    kept = {"step": step.to(parameter.device) if on_device else step.cpu()}
    for key, whole in state.items():
        kept[key] = torch.zeros_like(parameter.detach())
        _copy(kept[key], whole)
    return kept


def _forget(parameter: nn.Parameter, adam: torch.optim.AdamW) -> None:
    if not zero_state.is_trained(parameter):
        adam.state.pop(parameter, None)
    elif any(adam.state.values()):
        for key in MOMENTS:
            zero_state.set_moment(parameter, torch.zeros(whole_shape(parameter)), key)


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _copy(into: Tensor, whole: Tensor) -> None:
    """Copy `whole`, which every rank has, into a plain tensor or into this rank's shard."""
    if isinstance(into, DTensor):
        parts = distribute_tensor(whole, into.device_mesh, into.placements, src_data_rank=None)
        into.to_local().copy_(parts.to_local())
    else:
        into.copy_(whole)


def _from_first(value: Tensor | None, shape: torch.Size) -> Tensor:
    """The first rank's tensor on every rank, as float32 on this rank's device."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    if value is None:
        value = torch.empty(shape)
    assert value.shape == shape, f"a tensor of shape {tuple(value.shape)} for {tuple(shape)}"
    found = value.to(device=device, dtype=torch.float32, copy=True)
    if dist.is_initialized():
        dist.broadcast(found, src=0)
    return found


def _names_of_first(moments: Moments) -> set[str]:
    names: list[Any] = [list(moments)]
    if dist.is_initialized():
        dist.broadcast_object_list(names, src=0)
    return set(names[0])


def _kept(value: Tensor) -> Tensor:
    return value.detach().to(device="cpu", dtype=torch.float32)
