"""Damage to a checkpoint of SFT or of the reward model is detected, reported and survived."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from pipeline.runs.failures import one_line
from stages.distributed.checkpoints import SUMS, last_checkpoint
from tests.stages.reward.test_train import (  # noqa: F401
    Steps,
    Unbroken,
    World,
    assert_same_bits,
    unbroken,
    world,
)
from tests.stages.sft.test_train import base, config, train, weights  # noqa: F401
from tests.stages.small_disk import size_of, small_disk


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def with_a_flipped_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("trained.safetensors", truncated),
        ("optimizer.pt", with_a_flipped_bit),
        ("rng_state.pth", gone),
        (SUMS, truncated),
    ],
)
def test_the_reward_model_goes_on_from_the_checkpoint_before_a_damaged_one(
    world: World,  # noqa: F811
    unbroken: Unbroken,  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    harm: Callable[[Path], None],
) -> None:
    with pytest.raises(KeyboardInterrupt):
        world.train(tmp_path, report=Steps(5))
    folder = tmp_path / "checkpoints"
    harm(folder / "checkpoint-4" / name)
    steps = Steps()
    world.train(tmp_path, report=steps)
    assert min(step.done for step in steps.seen) == 3  # after checkpoint-2
    if harm is not gone:
        assert "resuming from checkpoint-2, the one before" in caplog.text
    assert_same_bits(unbroken[0], tmp_path)


def test_fine_tuning_goes_on_from_the_epoch_before_a_damaged_one(
    train,  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    steps = train(tmp_path / "a", config())
    per_epoch = steps[-1].total // config().epochs
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", config(), stop_after=2 * per_epoch + 1)
    truncated(tmp_path / "b" / "checkpoints" / f"checkpoint-{2 * per_epoch}" / "optimizer.pt")
    train(tmp_path / "b", config())
    assert "optimizer.pt is damaged" in caplog.text
    assert f"resuming from checkpoint-{per_epoch}, the one before" in caplog.text
    assert weights(tmp_path / "a" / "model") == weights(tmp_path / "b" / "model")


def test_where_no_checkpoint_is_whole_training_restarts_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "model.safetensors").write_bytes(b"half")
    assert last_checkpoint(tmp_path) is None
    assert "sums.json is missing or damaged; there is none before it" in caplog.text
    assert not (tmp_path / "checkpoint-3").exists()


def test_no_checkpoint_is_begun_where_there_is_no_room_for_it(
    world: World,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = SimpleNamespace(free=1000)
    monkeypatch.setattr("stages.distributed.checkpoints.shutil.disk_usage", lambda _: room)
    with pytest.raises(OSError, match="No space left") as caught:
        world.train(tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())
    message = one_line(caught.value, tmp_path)
    assert message == f"{tmp_path}: the disk is full"


@pytest.mark.slow
def test_a_disk_that_fills_up_under_the_reward_model_is_survived(
    world: World,  # noqa: F811
    unbroken: Unbroken,  # noqa: F811
    tmp_path: Path,
) -> None:
    size, disk = size_of(unbroken[0] / "checkpoints"), tmp_path / "disk"
    with small_disk(disk, size * 5 // 4) as resize:
        with pytest.raises((OSError, RuntimeError, SafetensorError)) as caught:
            world.train(disk)
        assert one_line(caught.value, disk) == f"{disk}: the disk is full"
        assert last_checkpoint(disk / "checkpoints") == disk / "checkpoints" / "checkpoint-4"
        resize(size * 9)
        world.train(disk)
        assert_same_bits(unbroken[0], disk)
