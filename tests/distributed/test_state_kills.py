"""A rank that dies while a checkpoint is written leaves the checkpoint before it, whole."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stages.distributed.checkpoints
import stages.sft.trainer
from stages.distributed.ranks import TIMEOUT
from tests.distributed import test_sft_ranks as sft
from tests.distributed.families import MICRO
from tests.distributed.ranks import Ranks, Sharding, run_ranks

MOMENTS = {  # a function of the checkpoints, and the rank that dies instead of calling it
    "gathering": ("gather_moments", 1),
    "finishing": ("_finish", 0),
    "flushing": ("_flush", 0),
}
EPOCHS = 3


def train_and_die(base: Path, out: Path, family: str, moment: str) -> None:
    """Die in the second checkpoint."""
    name, rank = MOMENTS[moment]
    original: Callable[..., Any] = vars(stages.distributed.checkpoints)[name]
    calls = 0

    def dying(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        second = "checkpoint-6" in str(args[0]) if isinstance(args[0], Path) else calls == 2
        if second and int(os.environ["RANK"]) == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)

    setattr(stages.distributed.checkpoints, name, dying)
    sft.train(base, out, family, MICRO[2], EPOCHS)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharding", "moment"),
    [
        ("zero3", "finishing"),
        ("zero3", "gathering"),
        ("zero2", "gathering"),
        ("fsdp2", "flushing"),
        ("ddp", "finishing"),
    ],
)
def test_a_rank_killed_while_saving_leaves_the_checkpoint_before(
    sharding: Sharding, moment: str, tmp_path: Path
):
    with Ranks(
        train_and_die, sft.base(), tmp_path, "full", moment, processes=2, sharding=sharding
    ) as ranks:
        assert all(ranks.wait(120.0))
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {"checkpoint-3", "incomplete"}
    results = run_ranks(
        sft.train, sft.base(), tmp_path, "full", MICRO[2], EPOCHS, processes=2, sharding=sharding
    )[0]
    rows = [row for row in results if row["step"]]
    assert rows[0]["step"] == 4
    sft.check(rows, tmp_path, "full", EPOCHS)


def train_beside_a_silent_rank(base: Path, out: Path) -> None:
    """The second rank stops working in the middle, and lives on."""
    os.environ[TIMEOUT] = "2"
    if os.environ["RANK"] == "1":
        original = stages.sft.trainer.SupervisedTrainer.training_step

        def silent(self: Any, *given: Any) -> Any:
            if self.state.global_step == 2:
                time.sleep(60.0)
            return original(self, *given)

        stages.sft.trainer.SupervisedTrainer.training_step = silent  # type: ignore[method-assign]
    sft.train(base, out, "full", MICRO[2], EPOCHS)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "zero2", "zero3", "fsdp2"])
def test_a_rank_that_falls_silent_is_given_up(sharding: Sharding, tmp_path: Path):
    with Ranks(
        train_beside_a_silent_rank, sft.base(), tmp_path, processes=2, sharding=sharding
    ) as ranks:
        ranks.processes[0].join(50.0)
        assert ranks.processes[0].exitcode == 1, ranks.output()
        assert ranks.processes[1].is_alive()
        assert "imed out" in ranks.output()
