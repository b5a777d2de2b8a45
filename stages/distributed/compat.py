"""Every touch of a private part of torch, transformers, TRL, PEFT, accelerate and DeepSpeed.

Each says in which version it was seen; tests/stages/distributed/test_compat.py fails where a new
version differs.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, Trainer

from reward_models.compat import whole_modules

MOMENTS = ("exp_avg", "exp_avg_sq")
ACCELERATE_VARIABLES = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "CUDA_VISIBLE_DEVICES")

# torch


def set_group_timeouts(limit: timedelta) -> None:
    """Let no collective of any process group wait longer than `limit`.

    torch 2.13: DeepSpeed's and accelerate's groups have the default of half an hour, and only a
    private function changes the limit of a group that exists.
    """
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(limit, group)


def recompile_limit(limit: int) -> AbstractContextManager[None]:
    """Let torch.compile make so many versions of a function for different shapes (torch 2.13)."""
    patch: AbstractContextManager[None] = torch._dynamo.config.patch(recompile_limit=limit)
    return patch


def mark_static_address(tensor: Tensor) -> None:
    """Let a CUDA graph use a tensor where it is, without a copy (torch 2.13)."""
    torch._dynamo.mark_static_address(tensor)


# accelerate


def forget_precision() -> None:
    """Let the next Accelerator have another precision than the last stage's in this process.

    accelerate 1.15 has one a process; the process group stays.
    """
    AcceleratorState._reset_state()


def accelerate_environment(config: Path) -> dict[str, str]:
    """Return the variables that `accelerate launch --config_file CONFIG` gives its processes.

    accelerate 1.15: `_validate_launch_command` merges a config file into the arguments, and no
    public function does. ValueError where accelerate refuses the file.
    """
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import (
        prepare_deepspeed_cmd_env,
        prepare_multi_gpu_env,
        prepare_simple_launcher_cmd_env,
    )

    line = ["--config_file", str(config), "--main_process_port", "0", "script"]
    try:
        arguments, settings, has_precision = _validate_launch_command(
            launch_command_parser().parse_args(line)
        )
        if arguments.use_deepspeed:
            fields = [*settings.deepspeed_config, *(["mixed_precision"] if has_precision else [])]
            arguments.deepspeed_fields_from_accelerate_config = ",".join(fields)
            _, environment = prepare_deepspeed_cmd_env(arguments)
        elif arguments.use_fsdp or arguments.multi_gpu:
            environment = prepare_multi_gpu_env(arguments)
        else:
            _, environment = prepare_simple_launcher_cmd_env(arguments)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{config}: accelerate does not take it ({error})") from None
    variables = {
        name: value for name, value in environment.items() if name.startswith(ACCELERATE_VARIABLES)
    }
    deepspeed = variables.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if deepspeed is not None and not Path(deepspeed).is_absolute():
        variables["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(config.parent / deepspeed)
    return variables


def use_gloo(distributed_type: str | None) -> None:
    """Let accelerate choose gloo on a CPU, and `distributed_type` where its own choice is wrong.

    accelerate 1.15: without an accelerator it finds no backend for DeepSpeed and FSDP, and every
    rank believes to be alone; FSDP on a CPU silently becomes data parallelism.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    original = PartialState._prepare_backend

    def prepare_backend(
        state: Any, cpu: bool = False, sagemaker_dp: bool = False, backend: str | None = None
    ) -> tuple[str, Any]:
        backend, kind = original(state, cpu, sagemaker_dp, backend)
        if distributed_type is not None:
            kind = DistributedType(distributed_type)
        return backend or "gloo", kind

    def set_device(state: Any) -> None:
        state.device = torch.device("cpu")

    PartialState._prepare_backend = prepare_backend
    PartialState.set_device = set_device


# DeepSpeed 0.19: it marks parameters by attributes, and its optimizers have no public way to their
# partitions. `zero` is its ZeRO optimizer, `adam` torch's AdamW inside that.


def skip_shared_memory_op() -> None:
    """Let DeepSpeed not compile its shared-memory operator at every start; gloo does the work."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def autocast_settings(dtype: torch.dtype | None) -> dict[str, Any]:
    """Return the part of DeepSpeed's config for engines that are called under autocast.

    DeepSpeed 0.19: without it an engine switches the autocast around it off. Gradients travel
    between ranks in float32: no module is named whose own would be narrowed.
    """
    if dtype is None:
        return {}
    settings = {
        "enabled": True,
        "dtype": str(dtype).removeprefix("torch."),
        "lower_precision_safe_modules": [],
    }
    return {"torch_autocast": settings}


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Return true where ZeRO-3 divided this parameter."""
    return "ds_id" in vars(parameter)


def is_updated_by_zero(parameter: nn.Parameter) -> bool:
    """Return true where a ZeRO optimizer of any stage updates this parameter."""
    marks = vars(parameter)
    return parameter.requires_grad and ("_hp_mapping" in marks or "_z3_optimizer" in marks)


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """Return the shape of a parameter before it was divided."""
    shape: torch.Size = vars(parameter).get("ds_shape", parameter.shape)
    return shape


def zero3_shard(parameter: nn.Parameter) -> Tensor:
    """Return this rank's part of a parameter that ZeRO-3 divided, flat and padded."""
    shard: Tensor = vars(parameter)["ds_tensor"].data
    return shard


def unwrap_optimizer(optimizer: Any) -> tuple[torch.optim.Optimizer, Any]:
    """Return the innermost optimizer and the ZeRO optimizer around it, None where there is none.

    ValueError where ZeRO is around another one than torch's AdamW.
    """
    zero = None
    while "optimizer" in (attributes := vars(optimizer)):
        if {"single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"} & set(attributes):
            zero = optimizer
        optimizer = attributes["optimizer"]  # accelerate and DeepSpeed wrap under this name
    if zero is not None and not isinstance(optimizer, torch.optim.AdamW):
        raise ValueError(f"the optimizer is {type(optimizer).__name__}; expected torch's AdamW")
    return optimizer, zero


def zero_partitions(zero: Any) -> list[Tensor]:
    """Return this rank's float32 partitions: one a parameter group, under ZeRO-3 a sub-group."""
    name = "single_partition_of_fp32_groups"
    attributes = vars(zero)
    partitions: list[Tensor] = attributes.get(name) or attributes["fp32_partitioned_groups_flat"]
    return partitions


def zero2_gradients(zero: Any) -> list[Tensor]:
    """Return copies of this rank's gradients under ZeRO-2, as its next step would take them.

    DeepSpeed's functions for debugging have them only between the last backward and the step.
    """
    parts: list[Tensor] = []
    for group, parameters in enumerate(zero.params_in_partition):
        parts += zero.get_flat_partition(
            parameters,
            zero.first_offset[group],
            zero.partition_size[group],
            dtype=zero.gradient_accumulation_dtype,
            device=zero.device,
            param_group_idx=group,
            return_tensor_list=True,
        )
    return [part.clone() for part in parts]


def zero_weight(parameter: nn.Parameter) -> Tensor:
    """Return the float32 master of a trained parameter, a copy of a divided one; all ranks call."""
    if is_updated_by_zero(parameter):
        from deepspeed.utils import safe_get_full_fp32_param

        master: Tensor = safe_get_full_fp32_param(parameter)
        return master
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([parameter]):
        return parameter.detach().clone()


def set_zero_weight(parameter: nn.Parameter, full: Tensor) -> None:
    """Set parameter and master to `full`, which every rank has."""
    if is_partitioned(parameter):
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter], modifier_rank=0):
            if dist.get_rank() == 0:
                parameter.data.copy_(full)
    else:
        parameter.data.copy_(full)
    if is_updated_by_zero(parameter):
        set_zero_shard(parameter, full, None)


@contextmanager
def without_zero3_hooks(engine: Any) -> Iterator[None]:
    """Let the layers of a ZeRO-3 engine keep their weights, which its hooks would release.

    TRL 1.12 has the functions for generation; no public name of DeepSpeed takes the hooks off.
    """
    from trl.models.utils import add_hooks, remove_hooks

    remove_hooks(engine)
    try:
        yield
    finally:
        add_hooks(engine)


def zero_moments(parameter: nn.Parameter, adam: torch.optim.AdamW) -> dict[str, Tensor]:
    """Return Adam's state of a trained parameter, {} before the first step; all ranks call."""
    from deepspeed.utils import safe_get_full_optimizer_state

    steps = [state["step"] for state in adam.state.values() if state]
    if not steps:
        return {}
    moments = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
    return {"step": steps[0], **moments}  # ZeRO updates all parameters together


def init_zero_moments(adam: torch.optim.AdamW, zero: Any, step: Tensor) -> None:
    """Give every flat partition the state that its first step would make."""
    for flat in zero_partitions(zero):
        if not adam.state.get(flat):
            adam.state[flat] = {key: torch.zeros_like(flat) for key in MOMENTS}
        device = flat.device if adam.defaults["fused"] else "cpu"
        adam.state[flat]["step"] = step.to(device, copy=True)
    link_zero_moments(adam, zero)


def link_zero_moments(adam: torch.optim.AdamW, zero: Any) -> None:
    """Let ZeRO-1 and 2 find the moments of all parameters, before any are read or written.

    They look once, after the step of the first parameter group, when the others have none yet.
    """
    if "single_partition_of_fp32_groups" not in vars(zero) or not adam.state:
        return
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    for parameters, flat in zip(
        zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True
    ):
        lazy_init_hp_params_optimizer_state(parameters, flat, adam.state)


def set_zero_shard(parameter: nn.Parameter, full: Tensor, key: str | None) -> None:
    """Copy this rank's part of `full`, which every rank has, into the master (None) or a moment."""
    from deepspeed import utils

    if not is_partitioned(parameter):
        if key is None:
            utils.safe_set_full_fp32_param(parameter, full)
        else:
            utils.safe_set_full_optimizer_state(parameter, full, key)
        return
    size = zero3_shard(parameter).numel()
    padded = nn.functional.pad(full.flatten(), (0, size * dist.get_world_size() - full.numel()))
    part = padded.narrow(0, size * dist.get_rank(), size)
    if key is None:
        utils.safe_set_local_fp32_param(parameter, part)
    else:
        utils.safe_set_local_optimizer_state(parameter, part, key)


# transformers


def layer_classes(model: nn.Module) -> set[str]:
    """Return the names of the classes of a model's transformer layers."""
    bases = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    return {name for base in bases for name in whole_modules(base) or ()}


class StageTrainer(Trainer):
    """A Trainer with public names for the private methods that a stage replaces.

    transformers 5.23: checkpoints, samplers and the count that a loss is divided by have no public
    place of their own.
    """

    def restore(self, checkpoint: Path | None) -> None:
        """Fill in what a checkpoint holds, once model and optimizer are sharded."""
        raise NotImplementedError

    def checkpoint_folder(self) -> Path:
        """Return the folder that a checkpoint is written into."""
        raise NotImplementedError

    def write_checkpoint(self, write: Callable[[], None]) -> None:
        """Write a checkpoint around `write`, which is Trainer's own part."""
        raise NotImplementedError

    def write_optimizer(self, folder: Path) -> None:
        """Write the state of optimizer and scheduler."""
        raise NotImplementedError

    def write_model(self, folder: Path, weights: dict[str, Tensor] | None) -> None:
        """Write the model, by default with `save_pretrained`; `weights` are the whole ones."""
        super()._save(str(folder), weights)

    def train_order(self) -> Sampler[int] | None:
        """Return the order of the training data."""
        raise NotImplementedError

    def num_items(self, batches: list[Any], device: torch.device) -> Any:
        """Return the number that the loss of a step is divided by."""
        return super()._get_num_items_in_batch(batches, device)

    def load_scaler(self, checkpoint: Path) -> None:
        """Load the state of the gradient scaler, where there is one."""
        self._load_scaler(str(checkpoint))

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, Any]:
        prepare = super()._prepare_for_training
        prepared: tuple[nn.Module, Any] = prepare(max_steps, train_dataloader, None)  # type: ignore[no-untyped-call]
        self.restore(None if resume_from_checkpoint is None else Path(resume_from_checkpoint))
        return prepared

    def _load_from_checkpoint(
        self,
        resume_from_checkpoint: str,
        model: nn.Module | None = None,
    ) -> None:
        """Nothing: `restore` does it."""

    def _get_output_dir(self, trial: object) -> str:  # noqa: ARG002
        return str(self.checkpoint_folder())

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        write = super()._save_checkpoint
        self.write_checkpoint(lambda: write(model, trial))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self.write_optimizer(Path(output_dir))

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        if self.args.should_save:
            assert output_dir is not None
            self.write_model(Path(output_dir), state_dict)

    def _get_train_sampler(self, train_dataset: object = None) -> Sampler[int] | None:  # noqa: ARG002
        return self.train_order()

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        return self.num_items(batch_samples, device)

    def _send_telemetry(self) -> None:
        """Tell no hub that someone trains (TRL 1.16)."""
