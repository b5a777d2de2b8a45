"""Fine-tuning of the last layers alone, and what is kept for an update, on several ranks."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import Sharding, run_ranks
from tests.distributed.test_ppo_ranks import assert_alike, assert_same_course, brief, trained
from tests.stages.tiny_ppo import tiny_world

World = tuple[Path, Path]
TOP: dict[str, Any] = {"adaptation": {"family": "full", "top_layers": 1}, "inner_epochs": 2}
PLAIN = {"cached": {"lower_layers": False}}
FIRST = {"cached": {"first_forward": True}, "minibatch": 8}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world"))


@pytest.mark.distributed
@pytest.mark.parametrize("sharding", brief(("ddp", "zero1", "zero2", "zero3", "fsdp2"), "zero2"))
def test_the_last_layers_are_trained_as_by_one_that_keeps_nothing(
    world: World, tmp_path: Path, sharding: Sharding
) -> None:
    alone = trained(world, tmp_path / "one", TOP | PLAIN)
    ranks = run_ranks(trained, world, tmp_path / "two", TOP, sharding=sharding)
    assert_same_course(ranks[0], alone)
    assert_alike(tmp_path / "one", tmp_path / "two")


@pytest.mark.distributed
@pytest.mark.parametrize("sharding", brief(("ddp", "zero2", "zero3", "fsdp2"), "ddp"))
def test_a_first_pass_that_is_kept_or_cannot_be_trains_as_one_process_does(
    world: World, tmp_path: Path, sharding: Sharding
) -> None:
    alone = trained(world, tmp_path / "one", {"minibatch": 8})
    ranks = run_ranks(trained, world, tmp_path / "two", FIRST, sharding=sharding)
    assert_same_course(ranks[0], alone)
    assert_alike(tmp_path / "one", tmp_path / "two")
    if sharding == "ddp":
        assert all(step["ppo/first_ratio_error"] == 0.0 for step in ranks[0])
