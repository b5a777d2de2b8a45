"""The kinds of adaptation, small, and which of them are tried under which sharding by default."""

from collections.abc import Collection
from typing import Any

import pytest

from stages.adapters.config import (
    BitFit,
    Bottleneck,
    Full,
    LoRA,
    Prefix,
    Probe,
    Prompt,
    PTuningV2,
    Restricted,
)
from tests.distributed.ranks import SHARDINGS

FAMILIES: dict[str, Full | Restricted] = {
    "full": Full(),
    "lora": LoRA(rank=2, alpha=4.0),
    "prefix": Prefix(length=3),
    "bottleneck": Bottleneck(width=4),
    "prefix-reparametrised": Prefix(length=3, reparametrise=6),
    "prompt": Prompt(length=3),
    "ptuning-v2": PTuningV2(length=3),
    "bitfit": BitFit(),
    "probe": Probe(),
}
NOT_UNDER_FSDP2 = {"sft": ("prompt", "probe"), "reward": ("prompt",)}  # refused in one line
ON_FOUR = ("full", "prefix")
MICRO = {1: 8, 2: 2, 4: 1}  # of a batch of 8, by ranks: wherever there are several, they accumulate


def grid(stage: str, quick: Collection[tuple[str, str]]) -> list[Any]:
    """Every sharding with every family on two ranks, some on four; all but `quick` are slow."""
    cells = [
        (sharding, family, 2)
        for sharding in SHARDINGS
        for family in FAMILIES
        if sharding != "fsdp2" or family not in NOT_UNDER_FSDP2[stage]
    ]
    cells += [(sharding, family, 4) for sharding in SHARDINGS for family in ON_FOUR]
    return [
        pytest.param(
            *(sharding, family, ranks),
            marks=[] if ranks == 2 and (sharding, family) in quick else pytest.mark.slow,
            id=f"{sharding}x{ranks}-{family}",
        )
        for sharding, family, ranks in cells
    ]
