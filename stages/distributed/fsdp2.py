"""A network under torch's `fully_shard`: one transformer layer at a time is whole.

Weights, gradients and optimiser states are sharded. Every rank must make the same forward passes in
the same order.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from stages.distributed.compat import layer_classes
from stages.distributed.network import (
    adamw,
    clip_norm,
    local,
    norm_over_ranks,
    require_room_for_full_weights,
    trained_parameters,
)


class Fsdp2:
    """See `stages.distributed.network.Network`."""

    shards_weights = True

    def __init__(
        self, model: nn.Module, max_gradient_norm: float | None, accelerator: Accelerator
    ) -> None:
        self.model, self.accelerator = model, accelerator
        self.max_norm = clip_norm(max_gradient_norm)
        self.units = shard_layers(model, accelerator)
        self.parameters = trained_parameters(model)
        self.optimizer = adamw(self.parameters)

    def backward(self, loss: Tensor) -> None:
        """See `Network`. FSDP2 averages over ranks; here their parts are added up."""
        torch.autograd.backward(loss * self.accelerator.num_processes)

    def step(self, learning_rate: float) -> Tensor:
        """See `Network`."""
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.max_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if torch.isfinite(norm):
            self.optimizer.param_groups[0]["lr"] = learning_rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def gradients(self) -> list[Tensor]:
        """See `Network`."""
        return [local(p.grad).clone() for p in self.parameters.values() if p.grad is not None]

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """See `Network`."""
        return norm_over_ranks(gradients, self.accelerator)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """See `Network`."""
        require_room_for_full_weights(self.model, self.accelerator)
        for unit in self.units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            yield
        finally:
            for unit in self.units:
                unit.reshard()
                unit.set_reshard_after_forward(True, recurse=False)

    def shards(self) -> dict[str, Tensor]:
        """See `Network`."""
        return {name: local(p.detach()) for name, p in self.parameters.items()}

    def full(self, shards: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Network`."""
        full = {}
        for name, shard in shards.items():
            like = self.parameters[name].data
            assert isinstance(like, DTensor)
            tensor = DTensor.from_local(
                shard, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
            ).full_tensor()
            if self.accelerator.is_main_process:
                full[name] = tensor.cpu()
        return full


def shard_layers(model: nn.Module, accelerator: Accelerator) -> list[FSDPModule]:
    """Shard every transformer layer, and then the rest; return the units gathered one at a time."""
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    names = layer_classes(model)
    layers = [module for module in model.modules() if type(module).__name__ in names]
    return [fully_shard(part, mesh=mesh) for part in (*layers, model)]
