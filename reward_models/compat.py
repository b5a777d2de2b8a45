"""Every touch of a private part of torch, transformers and PEFT below `stages/distributed`.

Seen in torch 2.13, transformers 5.23 and PEFT 0.21. tests/reward_models/test_compat.py and
tests/stages/adapters/test_registration.py fail where a new version differs.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType
from torch import Tensor, UntypedStorage
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["FakeTensorMode", "TorchDispatchMode"]


def storage_key(storage: UntypedStorage) -> int:
    """Return what identifies a storage while it lives; a fake one has no data pointer."""
    key: int = storage._cdata
    return key


def storages(tree: object) -> list[UntypedStorage]:
    """Return the storages of all tensors in nested lists, tuples and dicts."""
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def attention_name(config: PretrainedConfig) -> str | None:
    """Return the name of the attention function; a config has no public one."""
    name: str | None = config._attn_implementation
    return name


def set_attention_name(config: PretrainedConfig, name: str | None) -> None:
    """Set the attention function of a config and of those inside it.

    A model's public `set_attn_implementation` skips models without an AttentionInterface.
    """
    config._attn_implementation = name


_attention: ContextVar[str | None] = ContextVar("attention", default=None)


def chosen_attention() -> str | None:
    """Return the attention function in which models are loaded; None is transformers' choice."""
    return _attention.get()


@contextmanager
def attention_implementation(name: str | None) -> Iterator[None]:
    """Load models with this attention for a while; None changes nothing."""
    token = _attention.set(name or _attention.get())
    try:
        yield
    finally:
        _attention.reset(token)


def with_chosen_attention(config: PretrainedConfig) -> PretrainedConfig:
    """Return the config with the attention that was chosen; without a choice it is as it was."""
    name = _attention.get()
    if name is not None:
        set_attention_name(config, name)
    return config


def whole_modules(model: PreTrainedModel) -> Collection[str] | None:
    """Return the class names of modules that must not be divided among devices."""
    names: Collection[str] | None = model._no_split_modules
    return names


def peft_type(name: str) -> PeftType:
    """Return PEFT's type of that name, adding it where PEFT has none.

    PEFT 0.21: `register_peft_method` refuses a name that `PeftType` lacks, and the enumeration is
    closed, so a new member is put in by hand.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType  # type: ignore[attr-defined]
    member._sort_order_ = len(PeftType)  # type: ignore[attr-defined]
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    return member


def move_to_base_device(layer: BaseTunerLayer, name: str) -> None:
    """Move an adapter to the device and precision of the layer it adapts (PEFT 0.21)."""
    layer._move_adapter_to_device_of_base_layer(name)


def tensor_version(tensor: Tensor) -> int:
    """Return a number that every change in place makes larger (torch 2.13)."""
    return tensor._version
