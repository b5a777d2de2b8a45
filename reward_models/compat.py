"""Every touch of a private part of torch and transformers below `stages`.

Seen in torch 2.13 and transformers 5.23. tests/reward_models/test_compat.py fails
where a new version differs.
"""

from collections.abc import Collection

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


def whole_modules(model: PreTrainedModel) -> Collection[str] | None:
    """Return the class names of modules that must not be divided among devices."""
    names: Collection[str] | None = model._no_split_modules
    return names
