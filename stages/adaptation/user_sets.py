"""Sets of many users on one frozen model: each row of a batch is read under its own user's set.

The sets' tensors are stacked, U users deep, and a row takes its user's slice; what a set adds to a
layer is then one batched product for all rows, with no loop over users. Sets of one family may
differ in size (LoRA's rank, a bottleneck's width, a prefix's length): smaller ones are filled up
with zeros, which add exactly nothing.

    y = W x + scale_u B_u A_u x        LoRA, user u's rows (Hu et al. 2021)

Dimension key:  U users,  B rows,  L tokens,  R rank,  D input features,  O output features.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

A_END, B_END = ".lora_A.weight", ".lora_B.weight"
TRUNK = "base_model.model."  # what PEFT puts before a module's path


@dataclass(frozen=True, slots=True)
class UserSet:
    """One user's set as it lies on disk: adapter_config.json and the tensors by PEFT's names."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def family(self) -> str:
        """PEFT's name for the kind of adapter."""
        return str(self.config["peft_type"])


class UserSets(nn.Module):
    """The stacked sets of U users; `on(model)` lets them act, `seat` says who is in which row.

    Raises ValueError for sets of different families or places, and for kinds of adapter that have
    no batched form here.
    """

    user_B: Tensor

    def __init__(self, sets: Sequence[UserSet], *, trainable: bool = False) -> None:
        super().__init__()
        first = sets[0]
        for other in sets[1:]:
            if other.family != first.family or set(other.tensors) != set(first.tensors):
                raise ValueError(
                    f"users' sets are of different kinds: {first.family} on "
                    f"{len(first.tensors)} places and {other.family} on {len(other.tensors)}"
                )
        self.sets, self.family = tuple(sets), first.family
        self.names = tuple(sorted(first.tensors))
        self.stacks = nn.ParameterList(
            nn.Parameter(_stacked([one.tensors[name] for one in sets]), requires_grad=trainable)
            for name in self.names
        )
        self.scale_U = torch.tensor([_scale(one.config) for one in sets])
        self.rows: dict[str, Tensor] = {}

    def seat(self, user_B: Tensor) -> None:
        """From now on row b of every batch belongs to user `user_B[b]`."""
        self.user_B = user_B
        self.rows = {
            name: stack[user_B] for name, stack in zip(self.names, self.stacks, strict=True)
        }

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[None]:
        """Let the sets act on `model`, which itself stays as it is."""
        self.to(model.device)
        self.scale_U = self.scale_U.to(model.device)
        handles = list(_hooks(self, model))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def user_set(self, user: int) -> UserSet:
        """One user's set as it stands now, cut to its own size."""
        then = self.sets[user]
        tensors = {}
        for name, stack in zip(self.names, self.stacks, strict=True):
            inside = tuple(slice(size) for size in then.tensors[name].shape)
            tensors[name] = stack[user][inside].detach().clone().cpu()
        return UserSet(then.config, tensors)


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """(U, ...) in float32; smaller tensors are filled up with zeros at their ends."""
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    stack = torch.zeros(len(tensors), *shape)
    for user, tensor in enumerate(tensors):
        stack[user][tuple(slice(size) for size in tensor.shape)] = tensor.float()
    return stack


def _scale(config: Mapping[str, Any]) -> float:
    """What a set's addition is multiplied with."""
    kind = str(config["peft_type"])
    if kind != "LORA":
        raise ValueError(f"sets of kind {kind} have no batched form; expected LORA")
    refused = [key for key in ("use_dora", "modules_to_save", "rank_pattern") if config.get(key)]
    if refused or config.get("bias", "none") != "none":
        raise ValueError(f"a user's LoRA with {(refused or ['bias'])[0]} has no batched form")
    rank = float(config["r"])
    return float(config["lora_alpha"]) / (rank**0.5 if config.get("use_rslora") else rank)


def _hooks(sets: UserSets, model: PreTrainedModel) -> Iterator[RemovableHandle]:
    modules = dict(model.named_modules())
    for name in sets.names:
        if name.endswith(A_END):
            path = name.removesuffix(A_END)
            inside = path.removeprefix(TRUNK)
            if inside not in modules:
                raise ValueError(f"the users' sets adapt '{inside}', which the model does not have")
            yield modules[inside].register_forward_hook(_lora_hook(sets, path))


def _lora_hook(
    sets: UserSets, path: str
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def add(_: nn.Module, inputs: tuple[Tensor, ...], output_BLO: Tensor) -> Tensor:
        down_BRD, up_BOR = sets.rows[path + A_END], sets.rows[path + B_END]
        low_BLR = inputs[0] @ down_BRD.transpose(1, 2)
        scale_B = sets.scale_U[sets.user_B]
        return output_BLO + (low_BLR @ up_BOR.transpose(1, 2)) * scale_B[:, None, None]

    return add
