"""The whole experiment, shrunk: it runs to the report, repeats itself, and survives kill -9."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SMALL = [
    "threads=1",
    "sft.epochs=1",
    *(
        f"{stage}.{setting}"
        for stage in ("ppo", "ppo_ptx")
        for setting in ("episodes=64", "episodes_per_rollout=32", "minibatch=16")
    ),
    "ppo.checkpoint_every=1",
    "ppo_ptx.checkpoint_every=1",
    "evaluation.resamples=200",
    "evaluation.sign_flips=200",
    "data.sizes={demonstrations: 32, ranking_prompts: 48, ppo_prompts: 64, validation_prompts: 16, "
    "test_prompts: 48, toxicity_prompts: 16, pretraining_texts: 64, held_out_texts: 16}",
]
TRAINED = ("sft/model", "reward/model", "ppo/model", "ppo-ptx/model", "ppo-ptx/critic")


def command(out: Path) -> list[str]:
    sets = [part for text in SMALL for part in ("--set", text)]
    run = ["run", "configs/quickstart.yaml", "--out", str(out), *sets]
    return [sys.executable, "-c", "from pipeline.cli.app import main; main()", *run]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def finish(out: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(out), cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def weights(run: Path) -> dict[str, str]:
    """A hash of every weight file that training wrote."""
    files = [file for part in TRAINED for file in sorted((run / part).glob("*.safetensors"))]
    assert len(files) >= len(TRAINED)
    return {
        str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    return out, finish(out).stdout


@pytest.mark.timeout(900)
def test_the_last_line_is_the_run_and_its_page_says_that_labels_are_simulated(
    unbroken: tuple[Path, str],
) -> None:
    out, printed = unbroken
    assert Path(printed.strip().splitlines()[-1]) == out
    assert "Simulated labels" in (out / "report" / "report.html").read_text()


@pytest.mark.timeout(900)
def test_the_kl_starts_at_zero_and_the_first_ratio_at_one(unbroken: tuple[Path, str]) -> None:
    for stage in ("ppo", "ppo-ptx"):
        lines = (unbroken[0] / stage / "metrics.jsonl").read_text().splitlines()
        first = next(row for line in lines if "ppo/kl_nats" in (row := json.loads(line)))
        assert first["ppo/kl_nats"] == 0.0
        assert first["ppo/first_ratio_error"] <= 1e-5


@pytest.mark.timeout(900)
def test_a_run_killed_in_every_stage_ends_with_the_same_weights(
    unbroken: tuple[Path, str], tmp_path: Path
) -> None:
    """Also: two runs with one seed and one thread are bit-equal."""
    out = tmp_path / "run"
    for stage in ("reward", "ppo-ptx"):
        started = subprocess.Popen(
            command(out),
            cwd=ROOT,
            env=environment(),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        while not (out / stage / "metrics.jsonl").is_file():
            assert started.poll() is None, f"ended before {stage} began"
            time.sleep(0.05)
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
        assert not (out / stage / "manifest.json").is_file()
    finish(out)
    assert weights(out) == weights(unbroken[0])
