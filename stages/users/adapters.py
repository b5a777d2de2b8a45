"""Adapters of many users on one frozen model, one for each row of a mini-batch.

The adapters' tensors are stacked, U users deep, and a row takes its user's slice; what an adapter
adds to a layer is then one batched product for all rows, with no loop over users. Adapters of one
family may differ in size (LoRA's rank, a bottleneck's width, a prefix's length): smaller ones are
filled up with zeros, which add exactly nothing.

    y + scale_u B_u A_u x                             LoRA (Hu et al. 2021); y = W x
    y + scale_u (W_up,u s(W_down,u z + b_u) + c_u)    bottleneck, of z = y, or x where parallel
    y + b_u                                           BitFit
    softmax(q [P_k,u; K]^T) [P_v,u; V]                prefix and P-tuning v2

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
BOTTLENECK_TENSORS = (".down.weight", ".down.bias", ".up.weight", ".up.bias")
ADDED_BIAS = ".added_bias"
PREFIX_KEY, PREFIX_VALUE = ".prefix_key", ".prefix_value"
PEFT_PATH = "base_model.model."  # PEFT puts it before a module's path


@dataclass(frozen=True, slots=True)
class UserAdapter:
    """One user's adapter as it is on disk: adapter_config.json and tensors by PEFT's names."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def family(self) -> str:
        """PEFT's name for the family."""
        return str(self.config["peft_type"])


class StackedAdapters(nn.Module):
    """The adapters of U users; `on(model)` makes them act, `assign` gives each row its user.

    Raises ValueError for adapters of different families or target modules, and for families that
    have no batched form here.
    """

    scale_B11: Tensor
    num_positions_B: Tensor

    def __init__(self, adapters: Sequence[UserAdapter], *, trainable: bool = False) -> None:
        super().__init__()
        first = adapters[0]
        for other in adapters[1:]:
            if other.family != first.family or set(other.tensors) != set(first.tensors):
                raise ValueError(
                    f"users' adapters are of different kinds: {first.family} with "
                    f"{len(first.tensors)} tensors and {other.family} with {len(other.tensors)}"
                )
        self.adapters, self.family = tuple(adapters), first.family
        self.names = tuple(sorted(first.tensors))
        self.stacks = nn.ParameterList(
            nn.Parameter(_stacked([one.tensors[name] for one in adapters]), requires_grad=trainable)
            for name in self.names
        )
        self.scale_U = torch.tensor([_scale(one.config) for one in adapters])
        self.num_positions_U = torch.tensor([_num_positions(one) for one in adapters])
        self.rows: dict[str, Tensor] = {}

    def assign(self, user_B: Tensor) -> None:
        """Give row b of every batch the adapter number `user_B[b]` from now on."""
        self.scale_B11 = self.scale_U.to(user_B.device)[user_B][:, None, None]
        self.num_positions_B = self.num_positions_U.to(user_B.device)[user_B]
        self.rows = {
            name: stack[user_B] for name, stack in zip(self.names, self.stacks, strict=True)
        }

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[None]:
        """Let the adapters act on `model`, which itself stays as it is."""
        self.to(model.device)
        with prefix_attention(model) if self.family in PREFIXES else nullcontext():
            handles = list(_hooks(self, model))
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()

    def adapter_of(self, user: int) -> UserAdapter:
        """Return one user's adapter as it is now, cut to its own size."""
        original = self.adapters[user]
        tensors = {}
        for name, stack in zip(self.names, self.stacks, strict=True):
            inside = tuple(slice(size) for size in original.tensors[name].shape)
            tensors[name] = stack[user][inside].detach().clone().cpu()
        return UserAdapter(original.config, tensors)


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Return (U, ...) in float32; smaller tensors are filled up with zeros at their ends."""
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    stack = torch.zeros(len(tensors), *shape)
    for user, tensor in enumerate(tensors):
        stack[user][tuple(slice(size) for size in tensor.shape)] = tensor.float()
    return stack


def _num_positions(adapter: UserAdapter) -> int:
    """Return the length of a prefix; 0 for other families."""
    tensors = adapter.tensors.items()
    return next((tensor.shape[1] for name, tensor in tensors if name.endswith(PREFIX_KEY)), 0)


def _scale(config: Mapping[str, Any]) -> float:
    """Return the factor of an adapter's addition."""
    kind = str(config["peft_type"])
    if kind == BITFIT or kind in PREFIXES:
        return 1.0
    if kind == BOTTLENECK:
        return float(config["scaling"])
    if kind != LORA:
        known = ", ".join((LORA, BOTTLENECK, BITFIT, *PREFIXES))
        raise ValueError(f"adapters of kind {kind} have no batched form; expected one of {known}")
    refused = [key for key in ("use_dora", "modules_to_save", "rank_pattern") if config.get(key)]
    if refused or config.get("bias", "none") != "none":
        raise ValueError(f"a user's LoRA with {(refused or ['bias'])[0]} has no batched form")
    rank = float(config["r"])
    return float(config["lora_alpha"]) / (rank**0.5 if config.get("use_rslora") else rank)


def _hooks(adapters: StackedAdapters, model: PreTrainedModel) -> Iterator[RemovableHandle]:
    modules = dict(model.named_modules())
    for name in adapters.names:
        for ending, register in _HOOKS.items():
            if name.endswith(ending):
                path = name.removesuffix(ending)
                module = path.removeprefix(PEFT_PATH)
                if module not in modules:
                    raise ValueError(f"the adapters target '{module}', which the model has not")
                yield register(adapters, path, modules[module])


def _lora(adapters: StackedAdapters, path: str, module: nn.Module) -> RemovableHandle:
    def add(_: nn.Module, inputs: tuple[Tensor, ...], output_BLO: Tensor) -> Tensor:
        down_BRD, up_BOR = adapters.rows[path + LORA_DOWN], adapters.rows[path + LORA_UP]
        low_BLR = inputs[0].float() @ down_BRD.transpose(1, 2)
        added_BLO = (low_BLR @ up_BOR.transpose(1, 2)) * adapters.scale_B11
        return (output_BLO + added_BLO).to(output_BLO.dtype)

    return module.register_forward_hook(add)


def _bottleneck(adapters: StackedAdapters, path: str, module: nn.Module) -> RemovableHandle:
    config = adapters.adapters[0].config
    activation, parallel = ACT2FN[str(config["activation"])], bool(config["parallel"])

    def add(_: nn.Module, inputs: tuple[Tensor, ...], output_BLO: Tensor) -> Tensor:
        rows = [adapters.rows[path + ending] for ending in BOTTLENECK_TENSORS]
        down_BRD, down_BR, up_BOR, up_BO = rows
        x_BLD = (inputs[0] if parallel else output_BLO).float()
        low_BLR: Tensor = activation(x_BLD @ down_BRD.transpose(1, 2) + down_BR[:, None])
        added_BLO = low_BLR @ up_BOR.transpose(1, 2) + up_BO[:, None]
        return (output_BLO + added_BLO * adapters.scale_B11).to(output_BLO.dtype)

    return module.register_forward_hook(add)


def _bitfit(adapters: StackedAdapters, path: str, module: nn.Module) -> RemovableHandle:
    def add(_: nn.Module, __: object, output_BLO: Tensor) -> Tensor:
        total_BLO = output_BLO + adapters.rows[path + ADDED_BIAS][:, None]
        return total_BLO.to(output_BLO.dtype)

    return module.register_forward_hook(add)


def _prefix(adapters: StackedAdapters, path: str, module: nn.Module) -> RemovableHandle:
    def put(attention: nn.Module, _: object) -> None:
        key_BHPD, value_BHPD = adapters.rows[path + PREFIX_KEY], adapters.rows[path + PREFIX_VALUE]
        position_P = torch.arange(key_BHPD.shape[2], device=key_BHPD.device)
        keep_BP = position_P < adapters.num_positions_B[:, None]
        set_prefix(attention, RowPrefix(key_BHPD, value_BHPD, keep_BP))

    return module.register_forward_pre_hook(put)


_HOOKS = {
    LORA_DOWN: _lora,
    BOTTLENECK_TENSORS[0]: _bottleneck,
    ADDED_BIAS: _bitfit,
    PREFIX_KEY: _prefix,
}
