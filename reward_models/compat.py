"""Every touch of a private part of transformers below `stages`; seen in transformers 5.23.

tests/reward_models/test_compat.py fails where a new version differs.
"""

from collections.abc import Collection

from transformers import PretrainedConfig, PreTrainedModel


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
