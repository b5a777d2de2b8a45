"""A run that is killed goes on where it was, and ends with the same numbers."""

import contextlib
import errno
import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from stages.distributed.checkpoints import STATE, Checkpoints
from stages.progress import Report, Step
from tests.stages.ppo.tiny_ppo import metrics_of, program_of, tiny_config, tiny_world, train
from tests.stages.small_disk import size_of, small_disk

CHANGES: dict[str, Any] = {
    "episodes": 48,
    "pretraining": {"coefficient": 1.0, "examples_per_episode": 1.0, "tokens_per_example": 8},
    "kl": {"kind": "adaptive", "coefficient": 0.1, "target_nats": 1.0, "horizon_episodes": 80},
    "validation": {"every": 2},
    "checkpoint_every": 1,
    "responses_per_prompt": 2,
}
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_world(tmp_path_factory.mktemp("world"))


def assert_same_result(a: Path, b: Path) -> None:
    for part in ("model/model.safetensors", "critic/model.safetensors", "critic/head.safetensors"):
        left, right = load_file(a / part), load_file(b / part)
        assert left.keys() == right.keys()
        for name in left:
            assert torch.equal(left[name], right[name]), f"{part}: {name}"
    assert json.loads((a / "critic/reward.json").read_text()) == json.loads(
        (b / "critic/reward.json").read_text()
    )


class PowerCutError(Exception):
    """Stands for whatever ends a run in the middle."""


def cut_at(iteration: int) -> Report:
    """A listener that ends the run before the checkpoint of this iteration."""

    def cut(step: Step) -> None:
        if step.done == iteration:
            raise PowerCutError

    return cut


def test_an_interrupted_run_ends_bit_equal_to_an_unbroken_one(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    config = tiny_config(**CHANGES | {"checkpoint_every": 2})
    whole = metrics_of(world, tmp_path / "whole", config)

    with pytest.raises(PowerCutError):
        train(world, tmp_path / "broken", config, cut_at(4))
    rest = metrics_of(world, tmp_path / "broken", config)
    assert len(rest) == 4  # iterations 3 to 6: the last checkpoint was after 2
    for row, expected in zip(rest, whole[2:], strict=True):
        for name in expected:
            assert name.startswith("time/") or row[name] == expected[name], name
    assert_same_result(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(world: tuple[Path, Path], tmp_path: Path) -> None:
    config = tiny_config(**CHANGES | {"episodes": 8 * 24})
    train(world, tmp_path / "whole", config)
    program = program_of(world, tmp_path / "killed", config)
    rng, reached = random.Random(0), []
    for _ in range(5):
        run = subprocess.Popen(
            [sys.executable, "-uc", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert run.stdout is not None
        for _ in range(rng.randint(1, 2)):
            reached.append(int(run.stdout.readline()))
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(timeout=rng.uniform(0.0, 0.1))  # an iteration and its checkpoint take as long
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
    subprocess.run([sys.executable, "-uc", program], cwd=ROOT, check=True, timeout=120)
    assert max(reached) > 2  # some of the kills came after a checkpoint
    assert not list((tmp_path / "killed").rglob("incomplete"))
    assert_same_result(tmp_path / "killed", tmp_path / "whole")


def test_half_written_and_truncated_checkpoints_are_passed_over(
    world: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(**CHANGES)
    train(world, tmp_path, config)
    folder = tmp_path / "checkpoints"
    older, newest = sorted(folder.iterdir())
    whole = (newest / STATE).read_bytes()
    (newest / STATE).write_bytes(whole[: len(whole) // 2])
    cut_off = folder / "incomplete/checkpoint-9"
    cut_off.mkdir(parents=True)
    (cut_off / STATE).write_bytes(whole[:100])
    steps = metrics_of(world, tmp_path, config)
    assert len(steps) == 1  # from the older one, which is one iteration before the end
    assert older.name == "checkpoint-5"
    assert not cut_off.exists()
    assert (
        "checkpoint-6: state.pt is damaged (its hash is not the one that was written); resuming "
        "from checkpoint-5, the one before"
    ) in caplog.text


def test_where_every_checkpoint_is_damaged_training_restarts_with_a_warning(
    world: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(episodes=16)
    train(world, tmp_path, config)
    for path in (tmp_path / "checkpoints").glob(f"*/{STATE}"):
        path.write_bytes(b"")
    assert len(metrics_of(world, tmp_path, config)) == 2
    assert "there is none before it, so training restarts" in caplog.text


def test_the_last_two_checkpoints_are_kept(world: tuple[Path, Path], tmp_path: Path) -> None:
    train(world, tmp_path, tiny_config(**CHANGES))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["checkpoint-5", "checkpoint-6"]


def test_a_full_disk_leaves_the_checkpoint_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, {}, Accelerator())
    checkpoints.save(1, {"done": 1})

    def full(_: object, handle: BinaryIO) -> None:
        handle.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(2, {"done": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert checkpoints.latest() == {"done": 1}


def test_a_file_size_limit_is_reported_and_the_checkpoint_before_stays(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    config = tiny_config(**CHANGES | {"episodes": 24})
    out = tmp_path / "limited"
    train(world, tmp_path / "whole", config)
    with pytest.raises(PowerCutError):
        train(world, out, config, cut_at(2))
    before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    run = subprocess.run(
        [sys.executable, "-uc", program_of(world, out, config, before)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"OSError: [Errno 27] File too large: '{out / 'checkpoints'}'" in run.stderr
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["checkpoint-1"]
    train(world, out, config)
    assert_same_result(out, tmp_path / "whole")


@pytest.mark.slow
def test_a_disk_that_fills_up_is_survived(world: tuple[Path, Path], tmp_path: Path) -> None:
    """On a file system of its own, too small for a third checkpoint beside the two kept."""
    disk, config = tmp_path / "disk", tiny_config(**CHANGES)
    train(world, tmp_path / "whole", config)
    size = size_of(tmp_path / "whole/checkpoints")
    with small_disk(disk, size * 5 // 4) as resize:
        program = program_of(world, disk, config)
        run = subprocess.run(
            [sys.executable, "-uc", program], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert "OSError: [Errno 28] No space left on device" in run.stderr
        assert not list(disk.rglob("incomplete"))
        left = sorted(path.name for path in (disk / "checkpoints").iterdir())
        assert left == ["checkpoint-1", "checkpoint-2"]
        resize(size * 9)
        train(world, disk, config)
        assert_same_result(disk, tmp_path / "whole")


def test_a_checkpoint_of_other_settings_is_refused(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    train(world, tmp_path, tiny_config(episodes=16))
    with pytest.raises(ValueError, match=r"was made with config .* remove the checkpoints"):
        train(world, tmp_path, tiny_config(episodes=16, learning_rate=0.5))
    with pytest.raises(ValueError, match="was made with seed 0, this run has 1"):
        train(world, tmp_path, tiny_config(episodes=16), seed=1)


def test_checkpoints_of_an_earlier_version_are_refused_in_a_line(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "checkpoints/iteration-000002").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"of version 0\.1, which cannot be resumed; remove it"):
        train(world, tmp_path, tiny_config(episodes=16))


def test_more_episodes_go_on_from_the_last_checkpoint(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    train(world, tmp_path / "longer", tiny_config(episodes=16))
    assert len(metrics_of(world, tmp_path / "longer", tiny_config(episodes=32))) == 2
    train(world, tmp_path / "whole", tiny_config(episodes=32))
    assert_same_result(tmp_path / "longer", tmp_path / "whole")
