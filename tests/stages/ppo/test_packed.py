"""Episodes in one row without padding: the same update, and models that cannot read it are told."""

from pathlib import Path

import pytest
import torch

from stages.ppo.ppo import iterate
from tests.stages.ppo.tiny_ppo import FAMILIES, tiny_config, tiny_run, tiny_world

PACKED = ("full", "lora", "bottleneck", "prefix", "prompt", "ptuning-v2", "bitfit")


@pytest.mark.parametrize("sharing", [1, 2])
@pytest.mark.parametrize("family", PACKED)
def test_an_iteration_is_the_same_packed_and_padded(
    tmp_path: Path, family: str, sharing: int
) -> None:
    world, metrics, weights = tiny_world(tmp_path), [], []
    for packed in (True, False):
        config = tiny_config(
            packed=packed,
            minibatch=8,
            micro_batch_size=4,
            responses_per_prompt=sharing,
            adaptation=FAMILIES[family],
        )
        run = tiny_run(world, config)
        assert run.models.packed == packed
        prompts = [[5, 6, 7 + n // sharing] * (1 + n // sharing) for n in range(8)]
        step = iterate(run, prompts, 0)
        assert step["ppo/kl_nats"] == 0.0
        metrics.append({k: v for k, v in step.items() if not k.startswith("time/")})
        moved = [p for p in run.models.policy.parameters() if p.requires_grad]
        weights.append(torch.cat([p.detach().flatten() for p in moved]))
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-3, abs=1e-5)
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-4)
