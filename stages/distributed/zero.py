"""A network as a DeepSpeed engine, of whichever ZeRO stage the launcher's config names.

Optimiser states (1), gradients (2) and weights (3) are sharded. Every rank must make the same
forward passes in the same order.
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

from stages.distributed.compat import (
    autocast_settings,
    full_shape,
    without_zero3_hooks,
    zero2_gradients,
    zero3_shard,
)
from stages.distributed.network import (
    adamw,
    norm_over_ranks,
    require_room_for_full_weights,
    trained_parameters,
)

_WEIGHTS = 3  # the stage from which on weights are sharded


class Zero:
    """See `stages.distributed.network.Network`."""

    def __init__(
        self,
        model: nn.Module,
        max_gradient_norm: float | None,
        accelerator: Accelerator,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.parameters = trained_parameters(model)
        optimizer, clip = adamw(self.parameters), max_gradient_norm or 0.0
        self.model = _engine(model, optimizer, accelerator, clip=clip, autocast=autocast)
        self.optimizer = self.model.optimizer
        self.stage: int = self.model.zero_optimization_stage()
        self.shards_weights = self.stage == _WEIGHTS

    def backward(self, loss: Tensor) -> None:
        """See `Network`. DeepSpeed averages over ranks; here their parts are added up."""
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
            gradients = [p.grad for p in self.parameters.values()]
            return [self.accelerator.reduce(g.clone()) for g in gradients if g is not None]
        if self.model.zero_offload_optimizer() is not None:  # copied to the host at the step
            return []
        if self.shards_weights:
            return [safe_get_local_grad(p).clone() for p in self.parameters.values()]
        return zero2_gradients(self.optimizer)

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """See `Network`."""
        if self.stage == 1:
            return nn.utils.get_total_norm(gradients)
        return norm_over_ranks(gradients, self.accelerator)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """See `Network`."""
        if not self.shards_weights:
            yield
            return
        require_room_for_full_weights(self.model.module, self.accelerator)
        weights = list(self.model.module.parameters())
        with deepspeed.zero.GatheredParameters(weights), without_zero3_hooks(self.model):
            yield

    def shards(self) -> dict[str, Tensor]:
        """See `Network`."""
        if not self.shards_weights:
            return {name: p.detach() for name, p in self.parameters.items()}
        return {name: zero3_shard(p) for name, p in self.parameters.items()}

    def full(self, shards: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Network`."""
        full = {}
        for name, shard in shards.items():
            tensor = self._joined(self.parameters[name], shard)
            if self.accelerator.is_main_process:
                full[name] = tensor.cpu()
        return full

    def _joined(self, parameter: nn.Parameter, shard: Tensor) -> Tensor:
        if not self.shards_weights:
            return shard
        flat = shard.new_empty(shard.numel() * self.accelerator.num_processes)
        comm.all_gather_into_tensor(flat, shard.contiguous())
        shape = full_shape(parameter)
        return flat[: shape.numel()].view(shape)


def shard_weights(model: nn.Module, accelerator: Accelerator) -> None:
    """Shard a frozen model's weights among the ranks, where the stage is 3."""
    if accelerator.state.deepspeed_plugin.zero_stage == _WEIGHTS:
        _engine(model, None, accelerator, clip=0.0)


def _engine(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    accelerator: Accelerator,
    *,
    clip: float,
    autocast: torch.dtype | None = None,
) -> Any:
    config = _without_auto(copy.deepcopy(accelerator.state.deepspeed_plugin.deepspeed_config))
    config |= {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # an update ends where `step` is called
        "gradient_clipping": clip,
        **autocast_settings(autocast),
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine


def _without_auto(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not left to transformers' Trainer."""
    return {
        key: _without_auto(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if value != "auto"
    }
