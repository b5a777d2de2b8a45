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

import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

MOMENTS = ("exp_avg", "exp_avg_sq")


def let_models_load_whole() -> None:
    """Let `from_pretrained` read a model whole, also in a process that trains under ZeRO-3.

    TrainingArguments and Trainer tell transformers of ZeRO-3, which then divides a model as it is
    read: sets, heads and hashes need whole weights, and the first rank reads checkpoints alone.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Whether ZeRO-3 divided this parameter: DeepSpeed marks those by attributes."""
    return "ds_id" in vars(parameter)


def is_trained(parameter: nn.Parameter) -> bool:
    """Whether a ZeRO optimizer of any stage updates this parameter."""
    marks = vars(parameter)
    return parameter.requires_grad and ("_hp_mapping" in marks or "_z3_optimizer" in marks)


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape that a parameter has when it is whole."""
    shape: torch.Size = vars(parameter).get("ds_shape", parameter.shape)
    return shape


def whole_weight(parameter: nn.Parameter) -> Tensor:
    """The float32 master of a trained parameter, a copy of a partitioned one; all ranks call."""
    if is_trained(parameter):
        from deepspeed.utils import safe_get_full_fp32_param

        master: Tensor = safe_get_full_fp32_param(parameter)
        return master
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    with GatheredParameters([parameter]):
        return parameter.detach().clone()


def set_weight(parameter: nn.Parameter, whole: Tensor) -> None:
    """Let parameter and master hold `whole`, which every rank has."""
    if is_partitioned(parameter):
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters

        with GatheredParameters([parameter], modifier_rank=0):
            if dist.get_rank() == 0:
                parameter.data.copy_(whole)
    else:
        parameter.data.copy_(whole)
    if is_trained(parameter):
        _set_shard(parameter, whole, None)


def whole_moments(parameter: nn.Parameter, adam: torch.optim.AdamW) -> dict[str, Tensor]:
    """Adam's state of a trained parameter; nothing before the first step. All ranks call."""
    from deepspeed.utils import safe_get_full_optimizer_state

    begun = [state for state in adam.state.values() if state]
    if not begun:
        return {}
    found = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
    return {"step": begun[0]["step"], **found}  # ZeRO updates all parameters together


def set_moment(parameter: nn.Parameter, whole: Tensor, key: str) -> None:
    """Let this rank's part of a moment be that of `whole`, which every rank has."""
    _set_shard(parameter, whole, key)


def begin_moments(adam: torch.optim.AdamW, zero: Any, step: Tensor) -> None:
    """Give every flat partition of ZeRO's optimizer the state that its first step would make."""
    for flat in flat_partitions(zero):
        if not adam.state.get(flat):
            adam.state[flat] = {key: torch.zeros_like(flat) for key in MOMENTS}
        place = flat.device if adam.defaults["fused"] else "cpu"
        adam.state[flat]["step"] = step.to(place, copy=True)
    find_moments(adam, zero)


def find_moments(adam: torch.optim.AdamW, zero: Any) -> None:
    """Let ZeRO-1 and 2 find the moments of all parameters; before any others are read or written.

    They look once, after the step of the first parameter group, when the others have none yet.
    """
    if "single_partition_of_fp32_groups" not in vars(zero) or not adam.state:
        return
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    for parameters, flat in zip(
        zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True
    ):
        lazy_init_hp_params_optimizer_state(parameters, flat, adam.state)


def unwrapped(optimizer: Any) -> tuple[torch.optim.AdamW, Any]:
    """torch's AdamW inside, and the ZeRO optimizer around it, None where there is none.

    ValueError where the innermost optimizer is not torch's AdamW.
    """
    zero = None
    while not isinstance(optimizer, torch.optim.AdamW):
        kept = vars(optimizer)
        if "single_partition_of_fp32_groups" in kept or "fp32_partitioned_groups_flat" in kept:
            zero = optimizer
        if "optimizer" not in kept:
            raise ValueError(f"the optimizer is {type(optimizer).__name__}; expected torch's AdamW")
        optimizer = kept["optimizer"]  # accelerate and DeepSpeed wrap under this name
    return optimizer, zero


def flat_partitions(zero: Any) -> list[Tensor]:
    """This rank's float32 partitions: a tensor a parameter group, under ZeRO-3 one a sub-group."""
    kept = vars(zero)
    name = "single_partition_of_fp32_groups"
    found: list[Tensor] = kept[name] if name in kept else kept["fp32_partitioned_groups_flat"]
    return found


def _set_shard(parameter: nn.Parameter, whole: Tensor, key: str | None) -> None:
    """Copy this rank's part into the master (key None) or a moment."""
    from deepspeed import utils

    if not is_partitioned(parameter):
        if key is None:
            utils.safe_set_full_fp32_param(parameter, whole)
        else:
            utils.safe_set_full_optimizer_state(parameter, whole, key)
        return
    size = vars(parameter)["ds_tensor"].numel()
    padded = nn.functional.pad(whole.flatten(), (0, size * dist.get_world_size() - whole.numel()))
    part = padded.narrow(0, size * dist.get_rank(), size)
    if key is None:
        utils.safe_set_local_fp32_param(parameter, part)
    else:
        utils.safe_set_local_optimizer_state(parameter, part, key)


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
    adam, zero = unwrapped(optimizer)
    if zero is not None:
        find_moments(adam, zero)
    found = {}
    for name, parameter in parameters.items():
        if is_trained(parameter):
            state = whole_moments(parameter, adam)
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
            if is_partitioned(parameter) or is_trained(parameter):
                set_weight(parameter, whole)
            else:
                _copy(parameter.detach(), whole)


def scatter_moments(parameters: Parameters, optimizer: Any, moments: Moments) -> None:
    """Let the optimizer go on from the first rank's `moments`; who has none there begins anew."""
    adam, zero = unwrapped(optimizer)
    names = _names_of_first(moments)
    if zero is not None and names:
        step = next(iter(moments.values()))["step"] if is_first() else None
        begin_moments(adam, zero, _from_first(step, torch.Size()))
    for name, parameter in parameters.items():
        if name not in names:
            _forget(parameter, adam)
            continue
        mine = moments[name] if is_first() else {}
        state = {key: _from_first(mine.get(key), whole_shape(parameter)) for key in MOMENTS}
        step = _from_first(mine.get("step"), torch.Size())
        if is_trained(parameter):
            for key, whole in state.items():
                set_moment(parameter, whole, key)
        else:
            adam.state[parameter] = _as_adam_keeps_it(parameter, adam, step, state)


def is_first() -> bool:
    """Whether this is the process that writes: the first rank, or one that is alone."""
    return not dist.is_initialized() or dist.get_rank() == 0


def _whole_weight(parameter: nn.Parameter) -> Tensor:
    if is_partitioned(parameter) or is_trained(parameter):
        return whole_weight(parameter)
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
    if not is_trained(parameter):
        adam.state.pop(parameter, None)
    elif any(adam.state.values()):
        for key in MOMENTS:
            set_moment(parameter, torch.zeros(whole_shape(parameter)), key)


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
