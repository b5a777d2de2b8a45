"""What DeepSpeed's ZeRO holds of one parameter: its float32 master and Adam's moments.

Public functions of DeepSpeed read and write them, with three gaps that are closed here: before the
first step there are no moments to write to; ZeRO-1 and 2 find the moments of their first parameter
group only; and under ZeRO-3 the last rank's part is filled up, which the setter of whole tensors
does not expect.
"""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
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
