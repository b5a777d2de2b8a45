"""The figures of docs/ppo.md: 500 iterations of PPO-ptx at the paper's mix, and a second round.

    .venv/bin/python -m pytest -s -m bench tests/benchmarks/test_ppo_measurements.py

Each takes half an hour to an hour on one idle core, on the quickstart's model. RLHF_MEASURE=FOLDER
keeps the runs there, and goes on with them when called again.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.loading import load_config
from pipeline.evaluation.samples.results import read_results
from pipeline.steps.order import run_experiment

ROOT = Path(__file__).parents[2]
SEED = 0
PTX_500 = [
    "threads=1",
    "ppo=null",
    "ppo_ptx.episodes=8000",
    "ppo_ptx.episodes_per_rollout=16",
    "ppo_ptx.minibatch=4",
    "ppo_ptx.learning_rate=5e-5",
    "ppo_ptx.critic_learning_rate=2e-4",
    "ppo_ptx.warmup_iterations=10",
    "ppo_ptx.pretraining.examples_per_episode=8",
    "ppo_ptx.overoptimization.every=20",
]
PRINTED = (
    "ppo/score",
    "ppo/kl_nats",
    "ppo/pretraining_loss_nats_per_token",
    "ppo/pretraining_gradient_ratio",
    "ppo/entropy_nats_per_token",
    "ppo/response_tokens",
)
MEAN_OVER = 20  # iterations, up to the one that is named (the first: from it on)
Rows = Sequence[dict[str, Any]]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return Path(os.environ.get("RLHF_MEASURE", tmp_path))


def run(out: Path, sets: Sequence[str], until: str | None = None) -> Path:
    run_experiment(
        load_config(ROOT / "configs/quickstart.yaml", [f"seed={SEED}", *sets]), out, until=until
    )
    return out


def mean(rows: Rows, name: str) -> float:
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values)


@pytest.mark.bench
@pytest.mark.timeout(4 * 3600)
def test_ppo_ptx_is_stable_for_500_iterations_at_eight_examples_an_episode(runs: Path) -> None:
    """Under guards that stop; the reward model and the judge both end above where they began."""
    out = run(runs / "ptx-500", PTX_500, until="ppo-ptx")
    lines = (out / "ppo-ptx/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    steps = [row for row in rows if row["step"] > 0]
    assert len(steps) == 500
    print("\niteration", *(name.removeprefix("ppo/") for name in PRINTED))
    for last in (1, 100, 200, 300, 400, 500):
        some = steps[:MEAN_OVER] if last == 1 else steps[last - MEAN_OVER : last]
        print(last, *(f"{mean(some, name):.3f}" for name in PRINTED))
    gold = [row for row in rows if "ppo/gold_score" in row]
    print("judged at, second opinion, reward model, KL on 200 prompts")
    names = ("gold_score", "proxy_score", "gold_kl_nats")
    for row in gold[::5]:
        print(row["step"], *(f"{row[f'ppo/{name}']:.3f}" for name in names))
    name = "ppo/pretraining_loss_nats_per_token"
    assert mean(steps[-MEAN_OVER:], name) < mean(steps[:MEAN_OVER], name) + 0.02
    assert gold[-1]["ppo/proxy_score"] > gold[0]["ppo/proxy_score"]
    assert gold[-1]["ppo/gold_score"] > gold[0]["ppo/gold_score"]


@pytest.mark.bench
@pytest.mark.timeout(4 * 3600)
def test_what_a_second_round_brings(runs: Path) -> None:
    """No claim beyond that both rounds are measured: whatever it is, it is printed."""
    out = run(runs / "two-rounds", ["threads=1", "rounds=2"])
    results = read_results(out / "evaluate/results.json")
    for model in ("ppo", "ppo-ptx", "ppo-2", "ppo-ptx-2"):
        cell = results.cell(model, "preference", "win_rate", "all")
        assert cell is not None
        low, high = cell.ci95
        print(f"\n{model}: win rate {cell.value:.3f} ({low:.3f} to {high:.3f})", end="")
    for stage in ("reward", "reward-2"):
        values = json.loads((out / stage / "held_out.json").read_text())
        low, high = values["ci95"]
        within = values["within_model"]["value"]
        print(f"\n{stage}: {values['pair_accuracy']:.3f} ({low:.3f} to {high:.3f}) of", end=" ")
        print(f"{values['n_pairs']} held-out pairs, {within:.3f} of one policy's", end="")
    print()
    assert {"ppo-2", "ppo-ptx-2"} <= set(results.models)
