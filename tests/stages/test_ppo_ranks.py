"""Two ranks with half the episodes each do what one process does with all."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages.ppo.tally import Tally
from tests.stages.frozen_batch import frozen_batch
from tests.stages.tiny_ppo import tiny_config, tiny_learner, tiny_world

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.stages.frozen_batch import frozen_batch
from tests.stages.tiny_ppo import metrics_of, tiny_config, tiny_learner
from stages.ppo.tally import Tally

policy, reward, out = map(Path, sys.argv[1:])
learner = tiny_learner((policy, reward), tiny_config())
rank = learner.accelerator.process_index
assert learner.accelerator.num_processes == 2
tally = Tally()
_, _, data = frozen_batch()
learner._ppo_gradients(data, torch.tensor([[0], [1, 2, 3]][rank]), tally, first=False)
learner._add_over_ranks([*learner.policy.values(), *learner.critic.values()])
means = tally.means(learner.total)
steps = metrics_of((policy, reward), out / "run", tiny_config(validation={"every": 2}))
if rank == 0:
    grads = {name: p.grad for name, p in learner.policy.items()}
    torch.save({"grads": grads, "means": means, "steps": steps}, out / "found.pt")
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_world(tmp_path_factory.mktemp("world"))


@pytest.mark.distributed
@pytest.mark.slow
def test_unequal_halves_on_two_ranks_give_the_gradients_of_the_whole(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*launch, script, *world, tmp_path],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        check=True,
        timeout=280,
    )
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    learner = tiny_learner(world, tiny_config())
    tally = Tally()
    _, _, data = frozen_batch()
    learner._ppo_gradients(data, torch.arange(4), tally, first=False)
    for name, parameter in learner.policy.items():
        torch.testing.assert_close(found["grads"][name], parameter.grad, atol=1e-6, rtol=1e-4)
    assert found["means"] == pytest.approx(tally.means(lambda x: x), abs=1e-6)
    assert len(found["steps"]) == 4
    assert found["steps"][0]["ppo/kl_nats"] == 0.0
