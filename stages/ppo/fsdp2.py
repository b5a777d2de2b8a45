"""A network under torch's `fully_shard`: one transformer layer at a time is whole.

Weights, gradients and optimiser states are divided among the ranks. Every rank must make the same
passes in the same order.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from stages.ppo.memory import check_room
from stages.ppo.models import trained_parameters
from stages.ppo.networks import adamw, local, norm_over_ranks


class Fsdp2:
    """See `stages.ppo.networks.Network`."""

    divides_weights = True

    def __init__(self, model: nn.Module, limit: float | None, accelerator: Accelerator) -> None:
        self.model, self.accelerator = model, accelerator
        self.limit = torch.inf if limit is None else limit
        self.parts_of_model = shard_layers(model, accelerator)
        self.parameters = trained_parameters(model)
        self.optimizer = adamw(self.parameters)

    def backward(self, loss: Tensor) -> None:
        """See `Network`. FSDP2 takes the mean over ranks; here their shares are added up."""
        torch.autograd.backward(loss * self.accelerator.num_processes)

    def step(self, learning_rate: float) -> Tensor:
        """See `Network`."""
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.limit)
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
        check_room(self.model, self.accelerator)
        for part in self.parts_of_model:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            for part in self.parts_of_model:
                part.reshard()
                part.set_reshard_after_forward(True, recurse=False)

    def held(self) -> dict[str, Tensor]:
        """See `Network`."""
        return {name: local(p.detach()) for name, p in self.parameters.items()}

    def whole(self, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Network`."""
        found = {}
        for name, part in held.items():
            like = self._divided(name)
            full = DTensor.from_local(
                *(part, like.device_mesh, like.placements),
                shape=like.shape,
                stride=like.stride(),
            ).full_tensor()
            if self.accelerator.is_main_process:
                found[name] = full.cpu()
        return found

    def _divided(self, name: str) -> DTensor:
        found = self.parameters[name].data
        assert isinstance(found, DTensor)
        return found


def shard_layers(model: nn.Module, accelerator: Accelerator) -> list[FSDPModule]:
    """Divide every transformer layer, and then the rest; returns the parts whole at one time."""
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    bases = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    names = {name for base in bases for name in base._no_split_modules or ()}
    layers = [module for module in model.modules() if type(module).__name__ in names]
    return [fully_shard(part, mesh=mesh) for part in (*layers, model)]
