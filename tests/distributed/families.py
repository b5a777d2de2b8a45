"""The kinds of adaptation, small, and which of them are tried under which sharding by default."""

from collections.abc import Collection
from typing import Any

import pytest

from stages.adapters.config import Full, Restricted
from tests.distributed.ranks import SHARDINGS
from tests.stages.adapters import family_cells

FAMILIES: dict[str, Full | Restricted] = {
    **family_cells.FAMILIES,
    "prefix-reparametrised": family_cells.VARIANTS["prefix-reparametrised"],
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
