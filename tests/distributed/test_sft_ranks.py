"""Fine-tuning by several ranks is fine-tuning by one process, whatever shards it."""

import json
import random
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from reward_models.records import Prompt
from stages.generation.config import SamplingConfig
from stages.sft.config import SFTConfig
from stages.sft.train import train_sft
from tests.distributed.families import FAMILIES, MICRO, NOT_UNDER_FSDP2, grid
from tests.distributed.ranks import Sharding, run_ranks
from tests.distributed.truths import Rows, assert_same_curves, folder_of, recorder
from tests.reward_models.tiny import tiny_base, tiny_demonstrations, tiny_reward

QUICK = {("ddp", "bottleneck"), ("zero1", "lora"), ("zero2", "full"), ("zero3", "prefix")}
QUICK |= {("fsdp2", "full")}
BATCH, DEMONSTRATIONS = 8, 18  # the last batch has two, which is not a share of every rank's
PROMPTS = [Prompt("w0 w3"), Prompt("w0 w7 w2")]


def train(
    base: Path,
    out: Path,
    family: str,
    micro: int,
    epochs: int = 2,
    dies_at: int | None = None,
    reward_model: Path | None = None,
    dropout: float = 0.0,
) -> Rows:
    """Return the metrics of all steps; the rank that reports step `dies_at` is killed there.

    Epsilon keeps Adam from magnifying what is rounding alone.
    """
    rows: Rows = []
    drawn = tiny_demonstrations(DEMONSTRATIONS + 5, random.Random(0))

    train_sft(
        SFTConfig(
            epochs=epochs,
            batch_size=BATCH,
            micro_batch_size=micro,
            learning_rate=1e-2,
            dropout=dropout,
            adaptation=FAMILIES[family],
            selection=SamplingConfig(temperature=0.0, max_new_tokens=6),
            trainer={"adam_epsilon": 1e-4},
        ),
        base=base,
        demonstrations=drawn[:DEMONSTRATIONS],
        validation=drawn[DEMONSTRATIONS:],
        reward_model=reward_model,
        selection_prompts=[] if reward_model is None else PROMPTS,
        out=out,
        seed=1,
        report=recorder(rows, dies_at),
    )
    return rows


@cache
def base() -> Path:
    return tiny_base(folder_of("sft-ranks") / "base", tied=True)


@cache
def truth(family: str, epochs: int = 2) -> tuple[Rows, dict[str, Tensor]]:
    out = folder_of("sft-ranks") / f"truth-{family}-{epochs}"
    return train(base(), out, family, BATCH, epochs), saved(out / "model")


def saved(folder: Path) -> dict[str, Tensor]:
    return load_file(next(folder.glob("*model.safetensors")))


def check(rows: Rows, out: Path, family: str, epochs: int = 2) -> None:
    """The metrics, of all steps or of the last ones, and the result are those of one process."""
    expected_rows, weights_true = truth(family, epochs)
    weights = saved(out / "model")
    names = (
        "sft/loss_nats_per_token",
        "sft/gradient_norm",
        "sft/validation_loss_nats_per_token",
        "sft/learning_rate",
    )
    assert_same_curves(rows, expected_rows, names)
    assert weights.keys() == weights_true.keys()
    for name, weight in weights_true.items():
        torch.testing.assert_close(weights[name], weight, atol=1e-5, rtol=0)


@pytest.mark.distributed
@pytest.mark.parametrize(("sharding", "family", "ranks"), grid("sft", QUICK))
def test_ranks_learn_what_one_process_learns(
    sharding: Sharding, family: str, ranks: int, tmp_path: Path
):
    arguments = (base(), tmp_path, family, MICRO[ranks])
    rows = run_ranks(train, *arguments, processes=ranks, sharding=sharding)[0]
    check(rows, tmp_path, family)


def masks(base: Path, out: Path) -> list[list[bool]]:
    """The part that this rank's first dropout leaves of the states at each row's first position."""
    results: list[list[bool]] = []

    def spy(x: Tensor, rate: float, training: bool) -> Tensor:
        dropped = torch.nn.functional.dropout(x, rate, training)
        if training and not results:
            results.extend((dropped[:, 0] != 0).tolist())
        return dropped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.residual_dropout.dropout", spy)
        train(base, out, "full", 4, epochs=1, dropout=0.5)
    return results


@pytest.mark.distributed
def test_ranks_drop_out_different_parts(tmp_path: Path):
    first, second = run_ranks(masks, base(), tmp_path, sharding="ddp")
    rows = [tuple(row) for row in (*first, *second)]
    assert len(set(rows)) == len(rows) == 8


@pytest.mark.distributed
def test_a_reward_model_chooses_the_epoch_of_a_sharded_run(tmp_path: Path):
    scorer = tiny_reward(base(), tmp_path / "reward")
    alone, sharded = tmp_path / "alone", tmp_path / "sharded"
    train(base(), alone, "full", BATCH, reward_model=scorer)
    arguments = (base(), sharded, "full", MICRO[2], 2, None, scorer)
    run_ranks(train, *arguments, sharding="zero3")
    one, two = (json.loads((out / "selection.json").read_text()) for out in (alone, sharded))
    assert (one["epoch"], one["chosen_by"]) == (two["epoch"], two["chosen_by"])
    for here, there in zip(one["epochs"], two["epochs"], strict=True):
        assert here == pytest.approx(there, abs=1e-5)
    for name, weight in saved(alone / "model").items():
        torch.testing.assert_close(saved(sharded / "model")[name], weight, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", NOT_UNDER_FSDP2["sft"])
def test_what_fsdp2_cannot_shard_is_refused(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=f"family {family} does not train under sharding fsdp2"):
        train(base(), tmp_path, family, BATCH)
