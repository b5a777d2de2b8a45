"""A killed run goes on with another number of ranks or another sharding, and ends alike."""

from pathlib import Path

import pytest

from tests.distributed import test_reward_ranks as reward
from tests.distributed import test_sft_ranks as sft
from tests.distributed.families import MICRO
from tests.distributed.ranks import Ranks, Sharding, run_ranks

Leg = tuple[Sharding, int]  # how a run is spread until it is killed, or ends
ONE: Leg = ("none", 1)
CHAINS: list[tuple[str, list[Leg]]] = [
    ("full", [("zero2", 2), ONE]),
    ("full", [ONE, ("zero3", 2)]),
    ("lora", [("zero2", 2), ("zero3", 2), ONE]),
    ("full", [("fsdp2", 2), ("zero1", 2)]),
    ("prefix", [("zero3", 2), ("fsdp2", 2)]),
    ("bottleneck", [("ddp", 2), ("zero3-offload", 2), ONE]),
    ("bottleneck", [("zero3", 4), ("zero2", 2), ("ddp", 4)]),
    ("full", [("zero3", 2), ("zero3", 4), ONE]),
    ("full", [("fsdp2", 4), ("fsdp2", 2), ONE]),
]
QUICK = {"sft": (1,), "reward": (0,)}  # the others are slow
CELLS = [
    pytest.param(
        stage,
        *chain,
        marks=[] if position in QUICK[stage] else pytest.mark.slow,
        id="-".join([stage, chain[0], *(f"{sharding}x{ranks}" for sharding, ranks in chain[1])]),
    )
    for stage in QUICK
    for position, chain in enumerate(CHAINS)
]
DIES_AT = {"sft": (5, 8), "reward": (4, 8)}  # steps, in the middle of an epoch
EPOCHS = 3  # of three steps


@pytest.mark.distributed
@pytest.mark.parametrize(("stage", "family", "legs"), CELLS)
def test_a_killed_run_goes_on_under_another_sharding(
    stage: str, family: str, legs: list[Leg], tmp_path: Path
):
    train, check, base = (
        (sft.train, sft.check, sft.base())
        if stage == "sft"
        else (reward.train, reward.check, reward.base())
    )
    for (sharding, processes), dies_at in zip(legs[:-1], DIES_AT[stage], strict=False):
        steps = (base, tmp_path, family, MICRO[processes], EPOCHS, dies_at)
        with Ranks(train, *steps, processes=processes, sharding=sharding) as ranks:
            assert all(ranks.wait(120.0))
    sharding, processes = legs[-1]
    steps = (base, tmp_path, family, MICRO[processes], EPOCHS)
    results = run_ranks(train, *steps, processes=processes, sharding=sharding)[0]
    first = min(row["step"] for row in results if row["step"])
    assert 3 <= first <= DIES_AT[stage][len(legs) - 2]  # it did not begin anew
    check([row for row in results if row["step"]], tmp_path, family, EPOCHS)
