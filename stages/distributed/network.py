"""A trained network with its optimiser, as an own training loop uses it: see `Network`.

`Replicated` here, `stages.distributed.zero.Zero` and `stages.distributed.fsdp2.Fsdp2` implement it;
`stages.distributed.sharding` chooses. A loss is this rank's part of a sum over all ranks, so
gradients are added up over ranks, never averaged.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from stages.distributed.compat import full_shape
from stages.distributed.memory import free_memory
from stages.distributed.optimizers import PLAIN, AdamKind

BETAS = (0.9, 0.95)  # Ouyang et al. 2022, appendix C
WEIGHT_DECAY = 0.0  # the paper does not say
EPSILON = 1e-5  # the paper does not say; Ziegler et al.'s code has 1e-5


class Network(Protocol):
    """A model, its trained parameters by name, and its optimiser (AdamW or a wrapper of it).

    `model` is what a forward pass with gradients calls: the model or an engine around it.
    """

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    optimizer: Any
    shards_weights: bool

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to those accumulated so far."""

    def step(self, learning_rate: float) -> Tensor:
        """Clip and apply the gradients, clear them, and return their norm before clipping.

        The norm is over all ranks. Where it is not finite no step is taken, except by DeepSpeed,
        which reports it afterwards.
        """

    def gradients(self) -> list[Tensor]:
        """Copy this rank's part of the accumulated gradients, summed over ranks.

        Empty where they are out of reach before the step.
        """

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The norm over all ranks of what `gradients` returned."""

    def gathered(self) -> AbstractContextManager[None]:
        """Hold the full weights on every rank for a while, to sample with."""

    def shards(self) -> dict[str, Tensor]:
        """This rank's part of every trained parameter, sharing its memory."""

    def full(self, shards: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Full tensors from all ranks' parts, on the main rank; empty elsewhere if sharded."""


class Replicated:
    """A network that every rank holds in full; see `Network`."""

    shards_weights = False

    def __init__(
        self,
        model: nn.Module,
        max_gradient_norm: float | None,
        accelerator: Accelerator,
        kind: AdamKind = PLAIN,
    ) -> None:
        self.model, self.accelerator = model, accelerator
        self.max_norm = clip_norm(max_gradient_norm)
        self.parameters = trained_parameters(model)
        self.optimizer = adamw(self.parameters, kind, fused=True)

    def backward(self, loss: Tensor) -> None:
        """See `Network`."""
        torch.autograd.backward(loss)

    def step(self, learning_rate: float) -> Tensor:
        """See `Network`."""
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                parameter.grad = self._summed(parameter.grad)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.max_norm)
        if torch.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def gradients(self) -> list[Tensor]:
        """See `Network`."""
        gradients = (p.grad for p in self.parameters.values())
        return [self._summed(gradient.clone()) for gradient in gradients if gradient is not None]

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """See `Network`."""
        return nn.utils.get_total_norm(gradients)

    def gathered(self) -> AbstractContextManager[None]:
        """See `Network`."""
        return nullcontext()

    def shards(self) -> dict[str, Tensor]:
        """See `Network`."""
        return {name: p.detach() for name, p in self.parameters.items()}

    def full(self, shards: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Network`."""
        return dict(shards)

    def _summed(self, x: Tensor) -> Tensor:
        summed: Tensor = self.accelerator.reduce(x, reduction="sum")
        return summed


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training moves, by name; a tied one appears once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def adamw(
    parameters: Mapping[str, nn.Parameter], kind: AdamKind = PLAIN, *, fused: bool = False
) -> Any:
    """Stage three's optimiser; the learning rate is given at each step."""
    settings = {"betas": BETAS, "eps": EPSILON, "weight_decay": WEIGHT_DECAY}
    return kind.build(list(parameters.values()), fused=fused, **settings)


def clip_norm(max_gradient_norm: float | None) -> float:
    """The norm to clip at; infinite, which only measures, for None."""
    return torch.inf if max_gradient_norm is None else max_gradient_norm


def norm_over_ranks(shards: Sequence[Tensor], accelerator: Accelerator) -> Tensor:
    """The norm of tensors that are sharded over the ranks."""
    own = nn.utils.get_total_norm(shards)
    squared: Tensor = accelerator.reduce(own.square(), reduction="sum")
    return squared.sqrt()


def local(x: Tensor) -> Tensor:
    """This rank's part of a tensor that may be sharded."""
    return x.to_local() if isinstance(x, DTensor) else x


def require_room_for_full_weights(model: nn.Module, accelerator: Accelerator) -> None:
    """Raise ValueError where the sharded model, gathered to sample, would not fit in memory."""
    needed = sum(full_shape(p).numel() * p.element_size() for p in model.parameters())
    free = free_memory(accelerator.device)
    if needed > free:
        raise ValueError(
            f"to sample, a rank needs the whole policy: {needed / 2**30:.3g} GiB, and "
            f"{free / 2**30:.3g} GiB are free; let a server sample (ppo.rollouts.kind: vllm), or "
            "use devices with more memory"
        )


@torch.no_grad()
def copy_weights(target: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Set every tensor of `target` to the weight of its name."""
    for name, x in target.items():
        x.copy_(weights[name])


class MovingAverage:
    """An exponential moving average of trained weights in float32 (appendix C.4: decay 0.992).

    The paper does not say per what; here it is per optimiser step, as in other implementations.
    With `on_host` it is in host memory.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], decay: float, *, on_host: bool = False
    ) -> None:
        self.decay, self.on_host = decay, on_host
        self.set({name: x.float().clone() for name, x in weights.items()})

    def set(self, weights: Mapping[str, Tensor]) -> None:
        """Take these weights as the average."""
        self.weights = {name: x.cpu() if self.on_host else x for name, x in weights.items()}

    def step(self, weights: Mapping[str, Tensor]) -> None:
        """Move by a share 1 - decay towards the current weights."""
        with torch.no_grad():
            for name, mean in self.weights.items():
                mean.lerp_(weights[name].to(mean.device).float(), 1.0 - self.decay)


@contextmanager
def swapped(tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the tensors of a model hold `weights` for a while."""
    own = {name: x.clone() for name, x in tensors.items()}
    copy_weights(tensors, weights)
    try:
        yield
    finally:
        copy_weights(tensors, own)
