"""Sharding spares memory: what is counted are tensors, not processes."""

from pathlib import Path

import pytest

from tests.distributed.held_bytes import of_every_rank, small_base
from tests.distributed.ranks import Sharding


@pytest.mark.distributed
@pytest.mark.parametrize("sharding", ["zero3", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_two_ranks_hold_half_of_parameters_and_moments_each(sharding: Sharding, tmp_path: Path):
    base = small_base(tmp_path / "base")
    alone = of_every_rank(base, "none", 1)[0]
    for held in of_every_rank(base, sharding, 2):
        for kind in ("parameters", "moments"):
            assert 0 < held[kind] <= 0.55 * alone[kind]
