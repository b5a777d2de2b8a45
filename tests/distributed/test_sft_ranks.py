"""Fine-tuning by several ranks is fine-tuning by one process, whatever shards it."""

import os
import random
import signal
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from stages.config import Bottleneck, Full, LoRA, Prefix, Restricted, SFTConfig
from stages.progress import Step
from stages.sft import train_sft
from tests.distributed.ranks import SHARDINGS, Sharding, run_ranks
from tests.reward_models.tiny import tiny_base, tiny_demonstrations

FAMILIES: dict[str, Full | Restricted] = {
    "full": Full(),
    "lora": LoRA(rank=2, alpha=4.0),
    "prefix": Prefix(length=3),
    "bottleneck": Bottleneck(width=4),
}
SHORT = {("ddp", "bottleneck"), ("zero1", "lora"), ("zero2", "full"), ("zero3", "prefix")}
SHORT |= {("zero3", "full"), ("zero3-offload", "bottleneck"), ("fsdp2", "full")}
GRID = [
    pytest.param(*cell, marks=[] if cell in SHORT else pytest.mark.slow, id=f"{cell[0]}-{cell[1]}")
    for cell in ((sharding, family) for sharding in SHARDINGS for family in FAMILIES)
]
BATCH, DEMONSTRATIONS = 8, 18  # the last batch has two, which is not a share of every rank's

Told = list[dict[str, float]]


def train(
    base: Path, out: Path, family: str, micro: int, epochs: int = 2, dies_at: int | None = None
) -> Told:
    """What the steps reported; the rank that hears of step `dies_at` is killed there.

    Epsilon keeps Adam from magnifying what is rounding alone.
    """
    told: Told = []
    drawn = tiny_demonstrations(DEMONSTRATIONS + 5, random.Random(0))

    def listen(step: Step) -> None:
        if step.done == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        told.append({"step": step.done, **step.metrics})

    train_sft(
        SFTConfig(
            epochs=epochs,
            batch_size=BATCH,
            micro_batch_size=micro,
            learning_rate=1e-2,
            dropout=0.0,
            adaptation=FAMILIES[family],
            trainer={"adam_epsilon": 1e-4},
        ),
        base=base,
        demonstrations=drawn[:DEMONSTRATIONS],
        validation=drawn[DEMONSTRATIONS:],
        reward_model=None,
        selection_prompts=[],
        out=out,
        seed=1,
        report=listen,
    )
    return told


@cache
def here() -> Path:
    return Path(mkdtemp(prefix="sft-ranks-"))


@cache
def base() -> Path:
    return tiny_base(here() / "base", tied=True)


@cache
def truth(family: str, epochs: int = 2) -> tuple[Told, dict[str, Tensor]]:
    out = here() / f"truth-{family}-{epochs}"
    return train(base(), out, family, BATCH, epochs), saved(out / "model")


def saved(folder: Path) -> dict[str, Tensor]:
    return load_file(next(folder.glob("*model.safetensors")))


def curve(told: Told, name: str) -> Tensor:
    return torch.tensor([row[name] for row in told if name in row], dtype=torch.float64)


def check(told: Told, out: Path, family: str, epochs: int = 2) -> None:
    """The steps that were told, all or the last ones, and the result are those of one process."""
    told_true, weights_true = truth(family, epochs)
    told_true = told_true[-len(told) :]
    weights = saved(out / "model")
    for name in (
        "sft/loss_nats_per_token",
        "sft/gradient_norm",
        "sft/validation_loss_nats_per_token",
        "sft/learning_rate",
        "step",
    ):
        torch.testing.assert_close(curve(told, name), curve(told_true, name), atol=1e-5, rtol=0)
    assert weights.keys() == weights_true.keys()
    for name, weight in weights_true.items():
        torch.testing.assert_close(weights[name], weight, atol=1e-5, rtol=0)


@pytest.mark.distributed
@pytest.mark.parametrize(("sharding", "family"), GRID)
def test_two_ranks_learn_what_one_process_learns(sharding: Sharding, family: str, tmp_path: Path):
    told = run_ranks(train, base(), tmp_path, family, 2, sharding=sharding)[0]
    check(told, tmp_path, family)
