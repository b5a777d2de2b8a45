"""A network as a DeepSpeed engine, of whichever ZeRO stage the launcher's config names.

Optimiser states (1), gradients (2) and weights (3) are divided among the ranks. Every rank must
make the same passes in the same order.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from accelerate import Accelerator
from deepspeed import comm
from deepspeed.utils import safe_get_local_grad
from torch import Tensor, nn
from trl.models.utils import add_hooks, remove_hooks

from stages.ppo.memory import check_room
from stages.ppo.models import trained_parameters
from stages.ppo.networks import adamw, norm_over_ranks

_WEIGHTS = 3  # the stage from which on weights are divided


class Zero:
    """See `stages.ppo.networks.Network`."""

    def __init__(self, model: nn.Module, limit: float | None, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.parameters = trained_parameters(model)
        self.model = _engine(model, adamw(self.parameters), accelerator, clip=limit or 0.0)
        self.optimizer = self.model.optimizer
        self.stage: int = self.model.zero_optimization_stage()
        self.divides_weights = self.stage == _WEIGHTS

    def backward(self, loss: Tensor) -> None:
        """See `Network`. DeepSpeed divides by the ranks; here their shares are added up."""
        self.model.backward(loss * self.accelerator.num_processes)

    def step(self, learning_rate: float) -> Tensor:
        """See `Network`."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.model.step()
        return torch.as_tensor(self.model.get_global_grad_norm())

    def gradients(self) -> list[Tensor]:
        """See `Network`."""
        if self.stage == 1:  # DeepSpeed adds them up at the step
            found = [p.grad for p in self.parameters.values()]
            return [self.accelerator.reduce(g.clone()) for g in found if g is not None]
        if self.model.zero_offload_optimizer() is not None:  # copied to the host at the step
            return []
        if self.divides_weights:
            return [safe_get_local_grad(p).clone() for p in self.parameters.values()]
        return _gradient_partition(self.optimizer)

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """See `Network`."""
        if self.stage == 1:
            return nn.utils.get_total_norm(gradients)
        return norm_over_ranks(gradients, self.accelerator)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """See `Network`. The hooks that let weights go after every layer rest meanwhile."""
        if not self.divides_weights:
            yield
            return
        check_room(self.model.module, self.accelerator)
        with deepspeed.zero.GatheredParameters(list(self.model.module.parameters())):
            remove_hooks(self.model)
            try:
                yield
            finally:
                add_hooks(self.model)

    def held(self) -> dict[str, Tensor]:
        """See `Network`."""
        divided = self.divides_weights
        return {n: _part(p).data if divided else p.detach() for n, p in self.parameters.items()}

    def whole(self, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Network`."""
        main, found = self.accelerator.is_main_process, {}
        for name, part in held.items():
            full = self._joined(self.parameters[name], part)
            if main:
                found[name] = full.cpu()
        return found

    def _joined(self, parameter: nn.Parameter, part: Tensor) -> Tensor:
        if not self.divides_weights:
            return part
        flat = part.new_empty(part.numel() * self.accelerator.num_processes)
        comm.all_gather_into_tensor(flat, part.contiguous())
        shape: torch.Size = vars(parameter)["ds_shape"]
        return flat[: shape.numel()].view(shape)


def _gradient_partition(zero: Any) -> list[Tensor]:
    """This rank's gradients under ZeRO-2, as its next step would take them.

    DeepSpeed's functions for debugging have them only between the last backward and the step.
    """
    parts: list[Tensor] = []
    for group, parameters in enumerate(zero.params_in_partition):
        parts += zero.get_flat_partition(
            *(parameters, zero.first_offset[group], zero.partition_size[group]),
            dtype=zero.gradient_accumulation_dtype,
            device=zero.device,
            param_group_idx=group,
            return_tensor_list=True,
        )
    return [part.clone() for part in parts]


def _part(parameter: nn.Parameter) -> Tensor:
    """This rank's numbers of a divided weight, which DeepSpeed keeps as an attribute of it."""
    part: Tensor = vars(parameter)["ds_tensor"]
    return part


def divide(model: nn.Module, accelerator: Accelerator) -> None:
    """Divide a frozen model's weights among the ranks, where the stage is 3."""
    if accelerator.state.deepspeed_plugin.zero_stage == _WEIGHTS:
        _engine(model, None, accelerator, clip=0.0)


def _engine(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    accelerator: Accelerator,
    *,
    clip: float,
) -> Any:
    given = _without_auto(copy.deepcopy(accelerator.state.deepspeed_plugin.deepspeed_config))
    own = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # an update ends where `step` says so
        "gradient_clipping": clip,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=given | own)
    return engine


def _without_auto(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not left to transformers' Trainer."""
    kept = {key: value for key, value in config.items() if value != "auto"}
    return {
        key: _without_auto(value) if isinstance(value, Mapping) else value
        for key, value in kept.items()
    }
