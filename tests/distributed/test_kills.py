"""kill -9 of one rank at a random moment, saving included: what goes on ends alike."""

import contextlib
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.distributed.launched import ended, ended_alike, experiment, no_rank_is_left, rlhf
from tests.distributed.ranks import Ranks, Sharding, run_ranks
from tests.distributed.test_launched import without_a_launcher

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]
MOMENTS = range(20)
SHORT = 2
STOPS_WITHIN_S = 10.0
SHARDINGS: tuple[Sharding, ...] = ("ddp", "zero2", "zero3", "fsdp2")


@dataclass(frozen=True)
class Prepared:
    """A run whose stage is next, the same with the stage done, and how long that took."""

    before: Path
    stage: str
    done: Path
    lasts_s: float


@pytest.fixture(scope="module")
def tuning(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(tmp_path_factory.mktemp("tuning"), "sft", last_before="data")


@pytest.fixture(scope="module")
def reward_training(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(tmp_path_factory.mktemp("reward"), "reward", last_before="label")


@pytest.fixture(scope="module")
def policy_training(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(tmp_path_factory.mktemp("policy"), "ppo", last_before="reward")


def prepared(folder: Path, stage: str, last_before: str) -> Prepared:
    before, done = folder / "before", folder / "done"
    config = experiment(folder)
    code, _, output = ended(rlhf("run", config, "--out", before, "--until", last_before), 280.0)
    assert code == 0, output
    shutil.copytree(before, done)
    begun = time.monotonic()
    run_ranks(without_a_launcher, done, stage)
    return Prepared(before, stage, done / stage, time.monotonic() - begun)


def when(moment: int, world: Prepared, run: Path, rng: random.Random) -> Callable[[], bool]:
    """Any moment; every other time while a checkpoint is being written."""
    if moment % 2:
        ends = time.monotonic() + rng.uniform(0.1, 0.8) * world.lasts_s
        return lambda: time.monotonic() > ends
    seen, wait_for = set[str](), rng.randint(1, 4)

    def is_saving() -> bool:
        names = left(run / world.stage)
        aside = [name for name in names if name == "incomplete" or name.endswith(".part")]
        seen.update(str(set(names) - set(aside)) for _ in aside[:1])
        return bool(aside) and len(seen) >= wait_for

    return is_saving


def goes_on_after_a_kill(world: Prepared, moment: int, sharding: Sharding, folder: Path) -> None:
    rng, run = random.Random(moment), folder / "run"
    shutil.copytree(world.before, run)
    strikes = when(moment, world, run, rng)
    with Ranks(without_a_launcher, run, world.stage, sharding=sharding) as ranks:
        while not strikes() and any(process.is_alive() for process in ranks.processes):
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.02))
        with contextlib.suppress(ProcessLookupError):  # this run was quicker than the first
            ranks.kill(rng.randrange(2))
        with contextlib.suppress(TimeoutError):  # until ranks have met, only a launcher ends them
            ranks.wait(STOPS_WITHIN_S)
    print(f"moment {moment}: left {left(run / world.stage)}")
    run_ranks(without_a_launcher, run, world.stage, sharding=sharding, timeout_s=300.0)
    ended_alike(run / world.stage, world.done)
    no_rank_is_left(run)


def left(stage: Path) -> list[str]:
    """The checkpoints that a kill left."""
    folder = stage / "checkpoints"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("moment", MOMENTS[:SHORT])
def test_fine_tuning_goes_on(tuning: Prepared, moment: int, tmp_path: Path):
    goes_on_after_a_kill(tuning, moment, "ddp", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_fine_tuning_goes_on_at_all_moments(tuning: Prepared, moment: int, tmp_path: Path):
    goes_on_after_a_kill(tuning, moment, SHARDINGS[moment % 4], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_ppo_goes_on_at_all_moments(policy_training: Prepared, moment: int, tmp_path: Path):
    goes_on_after_a_kill(policy_training, moment, "ddp", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_reward_training_goes_on_at_all_moments(
    reward_training: Prepared, moment: int, tmp_path: Path
):
    goes_on_after_a_kill(reward_training, moment, SHARDINGS[moment % 4], tmp_path)
