"""Shared passes on several ranks train what one process trains."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import Sharding, run_ranks
from tests.distributed.test_ppo_ranks import assert_alike, assert_same_course, brief, trained
from tests.stages.tiny_ppo import probe_world

World = tuple[Path, Path]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return probe_world(tmp_path_factory.mktemp("probe"))


@pytest.mark.distributed
@pytest.mark.parametrize("sharding", brief(("ddp", "zero1", "zero2"), "zero2"))
@pytest.mark.parametrize("family", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_joint_passes_train_as_one_process_does(
    world: World, tmp_path: Path, family: str, sharding: Sharding
) -> None:
    adaptation: dict[str, Any] = {"family": family} | ({"rank": 2} if family == "lora" else {})
    settings: dict[str, Any] = {
        "adaptation": adaptation,
        "models": {"kind": "joint"},
        "ema_decay": 0.9,
        "pretraining": {"examples_per_episode": 0.75, "tokens_per_example": 8},
    }
    alone = trained(world, tmp_path / "one", settings)
    ranks = run_ranks(trained, world, tmp_path / "two", settings, sharding=sharding)
    assert_same_course(ranks[0], alone)
    assert_alike(tmp_path / "one", tmp_path / "two")


@pytest.mark.distributed
@pytest.mark.parametrize("sharding", brief(("zero3", "fsdp2"), "zero3"))
def test_shared_passes_over_divided_weights_are_refused_in_words(
    world: World, tmp_path: Path, sharding: Sharding
) -> None:
    settings = {"models": {"kind": "joint"}}
    with pytest.raises(AssertionError, match=r"models\.kind is joint, but weights are sharded"):
        run_ranks(trained, world, tmp_path / "two", settings, sharding=sharding)
