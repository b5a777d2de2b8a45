"""One trained network with its optimiser: whole on every rank, or sharded.

    Whole     AdamW on this rank's parameters; ranks add up their gradients
    Zero      a DeepSpeed engine: optimiser states (1), gradients (2) and weights (3) are divided
    Fsdp2     torch's fully_shard: weights, gradients and optimiser states are divided

Which one is up to the launcher (`pipeline/launch.py`), which accelerate has heard. A loss is this
rank's share of a sum over all ranks, so gradients are added up, never averaged.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from stages.adaptation.sets import family_of
from stages.ppo.models import trained_parameters
from stages.sharded_state import (
    gather_moments,
    gather_weights,
    scatter_moments,
    scatter_weights,
)

BETAS = (0.9, 0.95)  # Ouyang et al. 2022, appendix C
WEIGHT_DECAY = 0.0  # the paper does not say
EPSILON = 1e-5  # the paper does not say; Ziegler et al.'s code has 1e-5


class Network(Protocol):
    """What an update needs of a network.

    `model` is what a pass with gradients calls: the model or what wraps it. `parameters` are the
    trained ones, by name; `optimizer` is torch's AdamW, or what wraps it.
    """

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    optimizer: Any
    divides_weights: bool

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to those at hand."""

    def step(self, learning_rate: float) -> Tensor:
        """Clip and apply the gradients and forget them; their norm before, over all ranks.

        A norm that is not finite comes back without a step where gradients are at hand before it
        (`Whole`, `Fsdp2`); DeepSpeed tells it afterwards. The gradients are forgotten either way.
        """

    def gradients(self) -> list[Tensor]:
        """A copy of the gradients so far, summed over ranks: what this rank holds of them.

        Empty where they cannot be had before the step.
        """

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The norm over all ranks of what `gradients` returned."""

    def gathered(self) -> AbstractContextManager[None]:
        """Have the whole weights on every rank for a while, to sample with."""

    def held(self) -> dict[str, Tensor]:
        """The memory of this rank's part of every trained parameter; to write to it changes it."""

    def whole(self, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors from all ranks' parts; on a rank that is not the main one, nothing."""


class Whole:
    """A network that every rank holds whole."""

    divides_weights = False

    def __init__(self, model: nn.Module, limit: float | None, accelerator: Accelerator) -> None:
        self.model, self.accelerator = model, accelerator
        self.limit = torch.inf if limit is None else limit  # inf only measures
        self.parameters = trained_parameters(model)
        self.optimizer = adamw(self.parameters, fused=True)

    def backward(self, loss: Tensor) -> None:
        """See `Network`."""
        torch.autograd.backward(loss)

    def step(self, learning_rate: float) -> Tensor:
        """See `Network`."""
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                parameter.grad = self._over_ranks(parameter.grad)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.limit)
        if torch.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def gradients(self) -> list[Tensor]:
        """See `Network`."""
        found = (p.grad for p in self.parameters.values())
        return [self._over_ranks(grad.clone()) for grad in found if grad is not None]

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """See `Network`."""
        return nn.utils.get_total_norm(gradients)

    def gathered(self) -> AbstractContextManager[None]:
        """See `Network`."""
        return nullcontext()

    def held(self) -> dict[str, Tensor]:
        """See `Network`."""
        return {name: p.detach() for name, p in self.parameters.items()}

    def whole(self, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Network`."""
        return dict(held)

    def _over_ranks(self, x: Tensor) -> Tensor:
        added: Tensor = self.accelerator.reduce(x, reduction="sum")
        return added


def network(model: nn.Module, limit: float | None, accelerator: Accelerator) -> Network:
    """The model as the launcher wants it trained; `limit` is that of its gradient's norm."""
    match sharding(accelerator):
        case "none":
            return Whole(model, limit, accelerator)
        case "zero":
            from stages.ppo.zero import Zero  # DeepSpeed takes seconds to import

            return Zero(model, limit, accelerator)
        case "fsdp2":
            from stages.ppo.fsdp2 import Fsdp2

            _check_fits_fsdp2(model)
            return Fsdp2(model, limit, accelerator)


def _check_fits_fsdp2(model: nn.Module) -> None:
    if any(isinstance(m, PeftModel) and family_of(m) == "prompt" for m in model.modules()):
        raise ValueError(
            "family prompt does not work with --sharding fsdp2: its embeddings pass through layers "
            "outside the layers' own turn; use ddp, zero1, zero2 or zero3"
        )


def check_precision(accelerator: Accelerator) -> None:
    """Raise ValueError for fp16 without a scale: small gradients would vanish without a word.

    DeepSpeed's engines scale the loss themselves.
    """
    if accelerator.mixed_precision == "fp16" and sharding(accelerator) != "zero":
        raise ValueError(
            "mixed_precision is 'fp16', and PPO does not scale its losses, so that small gradients "
            "would become 0; expected 'bf16' or 'no'"
        )


def autocast(accelerator: Accelerator) -> torch.autocast:
    """The launcher's precision (accelerate has none for DeepSpeed's engines)."""
    precision, kind = accelerator.mixed_precision, accelerator.device.type
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(kind, dtype, enabled=precision in ("fp16", "bf16"))


def divide_frozen(model: nn.Module, accelerator: Accelerator) -> None:
    """Divide a frozen model's weights among the ranks where trained ones are."""
    match sharding(accelerator):
        case "none":
            pass
        case "zero":
            from stages.ppo.zero import divide

            divide(model, accelerator)
        case "fsdp2":
            from stages.ppo.fsdp2 import shard_layers

            shard_layers(model, accelerator)


def load_models_whole(accelerator: Accelerator) -> None:
    """Let models be loaded whole from now on, by whichever rank, to be adapted and divided later.

    Where DeepSpeed's stage is 3, transformers would divide them as it loads, which takes all ranks.
    """
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        plugin.dschf = None  # transformers knows of DeepSpeed as long as this lives


def sharding(accelerator: Accelerator) -> Literal["none", "zero", "fsdp2"]:
    """What the launcher asked for."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return "zero"
    # On a CPU accelerate itself would fall back to plain copies.
    return "fsdp2" if os.environ.get("ACCELERATE_USE_FSDP") == "true" else "none"


def state_of(network: Network) -> dict[str, Any]:
    """Weights and moments, whole and by name; on a rank that is not the first, empty.

    Every rank must call it, and `restore_into`, which goes on from what the first rank is given.
    """
    return {
        "weights": gather_weights(network.parameters),
        "moments": gather_moments(network.parameters, network.optimizer),
    }


def restore_into(network: Network, state: Mapping[str, Any]) -> None:
    """Go on from what `state_of` returned, however that network was sharded."""
    scatter_weights(network.parameters, state["weights"])
    scatter_moments(network.parameters, network.optimizer, state["moments"])


def adamw(parameters: Mapping[str, nn.Parameter], *, fused: bool = False) -> AdamW:
    """Stage three's optimiser; the learning rate is given at each step."""
    return AdamW(
        list(parameters.values()), betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY, fused=fused
    )


def norm_over_ranks(parts: Sequence[Tensor], accelerator: Accelerator) -> Tensor:
    """The norm of tensors of which every rank holds a part."""
    own = nn.utils.get_total_norm(parts)
    squared: Tensor = accelerator.reduce(own.square(), reduction="sum")
    return squared.sqrt()


def local(x: Tensor) -> Tensor:
    """This rank's part of a tensor that may be divided."""
    return x.to_local() if isinstance(x, DTensor) else x
