"""Sets of many users on one frozen model: each row of a batch is read under its own user's set.

The sets' tensors are stacked, U users deep, and a row takes its user's slice; what a set adds to a
layer is then one batched product for all rows, with no loop over users. Sets of one family may
differ in size (LoRA's rank, a bottleneck's width, a prefix's length): smaller ones are filled up
with zeros, which add exactly nothing.

    y + scale_u B_u A_u x                             LoRA (Hu et al. 2021); y = W x
    y + scale_u (W_up,u s(W_down,u z + b_u) + c_u)    bottleneck, of z = y, or x where parallel
    y + b_u                                           BitFit
    softmax(q [P_k,u; K]^T) [P_v,u; V]                prefix and P-tuning v2, see row_prefix

Dimension key:  U users,  B rows,  L tokens,  R rank or width,  D input features,  O output
features,  H key-value heads,  P prefix positions.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from stages.adapters.prefix_attention import RowPrefix, prefix_attention, set_prefix

LORA, BOTTLENECK, BITFIT = "LORA", "BOTTLENECK", "BITFIT"
PREFIXES = ("PREFIX", "PTUNING_V2")
LORA_DOWN, LORA_UP = ".lora_A.weight", ".lora_B.weight"
BOTTLENECK_PARTS = (".down.weight", ".down.bias", ".up.weight", ".up.bias")
ADDED_BIAS = ".added_bias"
PREFIX_KEY, PREFIX_VALUE = ".prefix_key", ".prefix_value"
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

    scale_B11: Tensor
    num_positions_B: Tensor

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
        self.num_positions_U = torch.tensor([_num_positions(one) for one in sets])
        self.rows: dict[str, Tensor] = {}

    def seat(self, user_B: Tensor) -> None:
        """From now on row b of every batch belongs to user `user_B[b]`."""
        self.scale_B11 = self.scale_U.to(user_B.device)[user_B][:, None, None]
        self.num_positions_B = self.num_positions_U.to(user_B.device)[user_B]
        self.rows = {
            name: stack[user_B] for name, stack in zip(self.names, self.stacks, strict=True)
        }

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[None]:
        """Let the sets act on `model`, which itself stays as it is."""
        self.to(model.device)
        with prefix_attention(model) if self.family in PREFIXES else nullcontext():
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


def _num_positions(one: UserSet) -> int:
    """How many positions a prefix has; 0 for other families."""
    return next((t.shape[1] for name, t in one.tensors.items() if name.endswith(PREFIX_KEY)), 0)


def _scale(config: Mapping[str, Any]) -> float:
    """What a set's addition is multiplied with."""
    kind = str(config["peft_type"])
    if kind == BITFIT or kind in PREFIXES:
        return 1.0
    if kind == BOTTLENECK:
        return float(config["scaling"])
    if kind != LORA:
        known = ", ".join((LORA, BOTTLENECK, BITFIT, *PREFIXES))
        raise ValueError(f"sets of kind {kind} have no batched form; expected one of {known}")
    refused = [key for key in ("use_dora", "modules_to_save", "rank_pattern") if config.get(key)]
    if refused or config.get("bias", "none") != "none":
        raise ValueError(f"a user's LoRA with {(refused or ['bias'])[0]} has no batched form")
    rank = float(config["r"])
    return float(config["lora_alpha"]) / (rank**0.5 if config.get("use_rslora") else rank)


def _hooks(sets: UserSets, model: PreTrainedModel) -> Iterator[RemovableHandle]:
    modules = dict(model.named_modules())
    for name in sets.names:
        for ending, begin in _BEGINNINGS.items():
            if name.endswith(ending):
                path = name.removesuffix(ending)
                inside = path.removeprefix(TRUNK)
                if inside not in modules:
                    raise ValueError(f"the sets adapt '{inside}', which the model does not have")
                yield begin(sets, path, modules[inside])


def _lora(sets: UserSets, path: str, module: nn.Module) -> RemovableHandle:
    def add(_: nn.Module, inputs: tuple[Tensor, ...], output_BLO: Tensor) -> Tensor:
        down_BRD, up_BOR = sets.rows[path + LORA_DOWN], sets.rows[path + LORA_UP]
        low_BLR = inputs[0] @ down_BRD.transpose(1, 2)
        return output_BLO + (low_BLR @ up_BOR.transpose(1, 2)) * sets.scale_B11

    return module.register_forward_hook(add)


def _bottleneck(sets: UserSets, path: str, module: nn.Module) -> RemovableHandle:
    activation = ACT2FN[str(sets.sets[0].config["activation"])]
    parallel = bool(sets.sets[0].config["parallel"])

    def add(_: nn.Module, inputs: tuple[Tensor, ...], output_BLO: Tensor) -> Tensor:
        rows = [sets.rows[path + ending] for ending in BOTTLENECK_PARTS]
        down_BRD, down_BR, up_BOR, up_BO = rows
        x_BLD = inputs[0] if parallel else output_BLO
        low_BLR: Tensor = activation(x_BLD @ down_BRD.transpose(1, 2) + down_BR[:, None])
        return output_BLO + (low_BLR @ up_BOR.transpose(1, 2) + up_BO[:, None]) * sets.scale_B11

    return module.register_forward_hook(add)


def _bitfit(sets: UserSets, path: str, module: nn.Module) -> RemovableHandle:
    def add(_: nn.Module, __: object, output_BLO: Tensor) -> Tensor:
        return output_BLO + sets.rows[path + ADDED_BIAS][:, None]

    return module.register_forward_hook(add)


def _prefix(sets: UserSets, path: str, module: nn.Module) -> RemovableHandle:
    def place(attention: nn.Module, _: object) -> None:
        key_BHPD, value_BHPD = sets.rows[path + PREFIX_KEY], sets.rows[path + PREFIX_VALUE]
        place_P = torch.arange(key_BHPD.shape[2], device=key_BHPD.device)
        keep_BP = place_P < sets.num_positions_B[:, None]
        set_prefix(attention, RowPrefix(key_BHPD, value_BHPD, keep_BP))

    return module.register_forward_pre_hook(place)


_BEGINNINGS = {
    LORA_DOWN: _lora,
    BOTTLENECK_PARTS[0]: _bottleneck,
    ADDED_BIAS: _bitfit,
    PREFIX_KEY: _prefix,
}
