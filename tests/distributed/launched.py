"""Real launches for tests: the command in a process of its own, its ranks, and what it leaves."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parents[2]
NEARLY = 1e-5
STARTED: list[subprocess.Popen[str]] = []
SIZES = {
    "demonstrations": 24,
    "ranking_prompts": 6,
    "ppo_prompts": 16,
    "validation_prompts": 4,
    "test_prompts": 6,
    "toxicity_prompts": 3,
    "pretraining_texts": 12,
    "held_out_texts": 4,
}


def experiment(folder: Path, epochs: int = 6) -> Path:
    """A config whose fine-tuning takes seconds: six steps and a checkpoint an epoch."""
    ppo = {
        "episodes": 64,
        "episodes_per_rollout": 8,
        "minibatch": 4,
        "learning_rate": 1e-5,
        "sampling": {"max_new_tokens": 6, "batch_size": 8},
        "health": {"action": "warn"},
        "checkpoint_every": 1,
    }
    settings = {
        "name": "launched",
        "model": "quickstart",
        "data": {"kind": "quickstart", "sizes": SIZES},
        "sampling": {"responses": [4, 4], "settings": [{"max_new_tokens": 6}]},
        "sft": {"epochs": epochs, "batch_size": 4},
        "sft_choice": "loss",
        "reward": {"prompts_per_batch": 2},
        "ppo": ppo,
        "ppo_ptx": None,
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def rlhf(
    *arguments: str | Path, inside: Sequence[str] = (), **variables: str
) -> subprocess.Popen[str]:
    """The command, begun; `inside` goes before it, and `told` into its environment."""
    own = [sys.executable, "-m", "pipeline.cli.app"]
    return begun([*inside, *own, *map(str, arguments)], **variables)


def begun(command: Sequence[str], **variables: str) -> subprocess.Popen[str]:
    """Any command, with what it says on pipes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=_respect_ctrl_c,
    )
    STARTED.append(process)
    return process


def end_all() -> None:
    """Leave nothing behind of a test that failed; ranks end with their command."""
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.communicate()


def _respect_ctrl_c() -> None:
    """Tests that a shell started in the background inherit a deaf ear."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ended(process: subprocess.Popen[str], timeout_s: float = 240.0) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; killed where it does not end."""
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        _, stderr = process.communicate()
        raise AssertionError(f"still running after {timeout_s:.0f} s\n{stderr}") from None
    return process.returncode, stdout, stderr


def until(is_so: Callable[[], bool], process: subprocess.Popen[str], wait_s: float = 200.0) -> None:
    """Wait for something while the command runs."""
    ends = time.monotonic() + wait_s
    while not is_so():
        assert process.poll() is None, ended(process)[2]
        assert time.monotonic() < ends, "it never came to that"
        time.sleep(0.01)


def steps(stage: Path) -> int:
    """Lines of a stage's metrics."""
    path = stage / "metrics.jsonl"
    return path.read_text().count("\n") if path.is_file() else 0


def ranks_of(run: Path) -> list[int]:
    """Processes that do a stage of this run as a rank, by their command lines, as a test sees."""
    results = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            state = re.sub(r".*\) ", "", (folder / "stat").read_text())[0]
        except OSError:  # it ended meanwhile
            continue
        if "pipeline.steps.rank" in words and str(run) in words and state not in "ZX":
            results.append(int(folder.name))
    return sorted(results)


def rank_number(pid: int) -> int:
    """The rank of a process."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return int(next(one for one in variables if one.startswith("RANK=")).removeprefix("RANK="))


def kill_rank(run: Path, rank: int) -> None:
    """End a rank as the machine would."""
    (pid,) = (pid for pid in ranks_of(run) if rank_number(pid) == rank)
    os.kill(pid, signal.SIGKILL)


def no_rank_is_left(run: Path, wait_s: float = 5.0) -> None:
    """AssertionError where ranks of this run are there after so long."""
    ends = time.monotonic() + wait_s
    while left := ranks_of(run):
        assert time.monotonic() < ends, f"orphans: {left}"
        time.sleep(0.05)


def numbers(stage: Path) -> list[dict[str, float | None]]:
    """The rows of a stage's metrics."""
    lines = (stage / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def weights(stage: Path) -> dict[str, Tensor]:
    """The model that a stage left."""
    return dict(load_file(stage / "model" / "model.safetensors"))


def ended_alike(stage: Path, other: Path) -> None:
    """AssertionError where the numbers of every step or the final weights are not the same."""
    own_rows, theirs = numbers(stage), numbers(other)
    assert [row["step"] for row in own_rows] == [row["step"] for row in theirs]
    for row, twin in zip(own_rows, theirs, strict=True):
        for name, value in row.items():
            also = twin[name]
            of_a_rank = name.startswith("time/") or name == "ppo/micro_batch_size"
            if of_a_rank or value is None or also is None:
                continue
            assert abs(value - also) <= NEARLY * max(1.0, abs(value)), (row["step"], name)
    ours = weights(other)
    for name, tensor in weights(stage).items():
        torch.testing.assert_close(tensor, ours[name], atol=NEARLY, rtol=NEARLY, msg=name)
