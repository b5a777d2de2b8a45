"""Sampling with LoRA added to the weights: the same policy, and nothing left behind."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from stages.adapters.lora import merged_lora
from tests.stages.ppo.tiny_ppo import metrics_of, tiny_config, tiny_models, tiny_world

LORA = {"family": "lora", "rank": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_world(tmp_path_factory.mktemp("world"))


def test_merging_keeps_the_logits_and_every_bit_is_back_afterwards(
    world: tuple[Path, Path],
) -> None:
    models = tiny_models(world, tiny_config(adaptation=LORA))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in models.policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=generator)
    before = dict(models.policy.named_parameters())
    bits = {name: p.clone() for name, p in before.items()}
    ids_BL = torch.arange(2, 10)[None]
    with torch.no_grad():
        apart, reference = models.policy(ids_BL).logits, models.reference(ids_BL).logits
        with merged_lora(models.policy):
            assert len(dict(models.policy.named_parameters())) < len(before)  # no adapter is run
            torch.testing.assert_close(models.policy(ids_BL).logits, apart, rtol=0, atol=1e-4)
            assert torch.equal(models.reference(ids_BL).logits, reference)
        assert torch.equal(models.policy(ids_BL).logits, apart)
    assert (apart - reference).abs().max() > 0.1
    for name, parameter in models.policy.named_parameters():
        assert parameter is before[name]
        assert torch.equal(parameter, bits[name])


def test_a_run_that_samples_merged_starts_every_update_at_a_ratio_of_one(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    merged = tiny_config(adaptation=LORA, rollouts={"kind": "own", "merged": True})
    rows = metrics_of(world, tmp_path / "merged", merged)
    plain = metrics_of(world, tmp_path / "plain", tiny_config(adaptation=LORA))
    assert all(row["ppo/first_ratio_error"] < 1e-5 for row in rows)
    for row, expected in zip(rows, plain, strict=True):  # the same draws give the same tokens
        assert row["ppo/score"] == pytest.approx(expected["ppo/score"], abs=1e-3)


def test_merging_asks_for_lora() -> None:
    with pytest.raises(ValidationError, match=r"adaptation\.family is full; expected lora"):
        tiny_config(rollouts={"kind": "own", "merged": True})
