"""A reward model trained by several ranks is the one of one process, whatever shards it."""

import json
import os
import random
import signal
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainingArguments

from reward_models.model import RewardModel
from stages.progress import Step
from stages.reward.config import RewardConfig
from stages.reward.train import fit_to_memory, train_reward
from tests.distributed.families import FAMILIES, MICRO, NOT_UNDER_FSDP2, grid
from tests.distributed.ranks import Sharding, run_ranks
from tests.distributed.truths import Steps, curve, folder_of
from tests.reward_models.tiny import tiny_base, tiny_demonstrations, tiny_rankings, tiny_tasks

QUICK = {("zero2", "bottleneck"), ("zero3", "full"), ("zero3-offload", "lora"), ("fsdp2", "lora")}
BATCH, PROMPTS = 8, 22  # 18 to learn from: the last batch has two


def train(
    base: Path,
    out: Path,
    family: str,
    micro: int | Literal["auto"],
    epochs: int = 2,
    dies_at: int | None = None,
) -> Steps:
    """Return the reported steps; the rank that reports step `dies_at` is killed there.

    Epsilon keeps Adam from magnifying what is rounding alone.
    """
    steps: Steps = []
    rng = random.Random(0)
    tasks = tiny_tasks(PROMPTS, rng)

    def listen(step: Step) -> None:
        if step.done == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if step.metrics:  # not one that only says what is being done
            steps.append({"step": step.done, **step.metrics})

    train_reward(
        RewardConfig(
            epochs=epochs,
            prompts_per_batch=BATCH,
            micro_prompts=micro,
            learning_rate=1e-2,
            held_out=0.2,
            scale="held_out",
            checkpoint_every=2,
            adaptation=FAMILIES[family],
            trainer={"adam_epsilon": 1e-4},
        ),
        base=base,
        tasks=tasks,
        rankings=tiny_rankings(tasks, ["ann", "bob"], rng, noise=1.0),
        demonstrations=tiny_demonstrations(6, rng),
        out=out,
        seed=1,
        report=listen,
    )
    return steps


@cache
def base() -> Path:
    return tiny_base(folder_of("reward-ranks") / "base")


@cache
def truth(family: str, epochs: int = 2) -> tuple[Steps, dict[str, Tensor], dict[str, Any]]:
    out = folder_of("reward-ranks") / f"truth-{family}-{epochs}"
    steps = train(base(), out, family, BATCH, epochs)
    return steps, saved(out), held_out(out)


def saved(out: Path) -> dict[str, Tensor]:
    """All that the artefact's weights are, scale and bias of its head included."""
    results = {}
    for path in (out / "model").glob("*.safetensors"):
        results |= {f"{path.name} {name}": weight for name, weight in load_file(path).items()}
    return results | {"bias": RewardModel.load(out / "model").bias.detach()}


def held_out(out: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((out / "held_out.json").read_text())
    return results


def check(steps: Steps, out: Path, family: str, epochs: int = 2) -> None:
    """The steps that were told, all or the last ones, and the result are those of one process."""
    true_steps, weights_true, held_true = truth(family, epochs)
    true_steps = true_steps[-len(steps) :]
    for name in (
        "reward/loss_nats_per_pair",
        "reward/pair_accuracy",
        "reward/gradient_norm",
        "step",
    ):
        torch.testing.assert_close(curve(steps, name), curve(true_steps, name), atol=1e-5, rtol=0)
    weights, held = saved(out), held_out(out)
    assert weights.keys() == weights_true.keys()
    for name, weight in weights_true.items():
        torch.testing.assert_close(weights[name], weight, atol=1e-5, rtol=1e-5)  # head / deviation
    for name in ("pair_accuracy", "n_pairs", "label_kinds", "trained_prompts", "ceiling"):
        assert held[name] == held_true[name]
    for name in ("bias", "divided_by", "calibration_error"):
        assert held[name] == pytest.approx(held_true[name], rel=1e-5, abs=1e-5)


@pytest.mark.distributed
@pytest.mark.parametrize(("sharding", "family", "ranks"), grid("reward", QUICK))
def test_ranks_learn_what_one_process_learns(
    sharding: Sharding, family: str, ranks: int, tmp_path: Path
):
    steps = (base(), tmp_path, family, MICRO[ranks])
    results = run_ranks(train, *steps, processes=ranks, sharding=sharding)[0]
    check(results, tmp_path, family)


def with_little_on_one(base: Path, out: Path) -> tuple[Steps, int]:
    """Train where the second rank has no memory to spare; how much each rank reads at once too."""
    sizes: list[int] = []

    def cut(arguments: TrainingArguments, *given: Any) -> None:
        fit_to_memory(arguments, *given)
        sizes.append(arguments.per_device_train_batch_size)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("stages.reward.train.fit_to_memory", cut)
        if os.environ["RANK"] == "1":
            patched.setattr("stages.reward.train.free_memory", lambda _: 0)
        return train(base, out, "full", "auto"), sizes[0]


@pytest.mark.distributed
@pytest.mark.parametrize("sharding", ["zero3", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_ranks_read_as_many_prompts_as_the_scarcest_has_memory_for(
    tmp_path: Path, sharding: Sharding
):
    (steps, own), (_, theirs) = run_ranks(with_little_on_one, base(), tmp_path, sharding=sharding)
    assert own == theirs == 1
    check(steps, tmp_path, "full")


@pytest.mark.parametrize("family", NOT_UNDER_FSDP2["reward"])
def test_what_fsdp2_cannot_shard_is_refused(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=f"family {family} does not train under sharding fsdp2"):
        train(base(), tmp_path, family, BATCH)
