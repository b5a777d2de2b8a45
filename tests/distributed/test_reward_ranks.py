"""Two processes train the reward model that one process trains (eight prompts = two times four)."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reward_models.records import write_jsonl
from tests.reward_models.tiny import tiny_base, tiny_rankings, tiny_tasks

SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from reward_models.records import Ranking, RankingTask, read_records
from stages.config import RewardConfig
from stages.progress import silent
from stages.reward import train_reward
here, out, micro = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
config = RewardConfig(
    learning_rate=1e-4, prompts_per_batch=8, micro_prompts=micro, held_out=0.2
)
train_reward(
    config, base=here / "base", tasks=read_records(here / "tasks.jsonl", RankingTask),
    rankings=read_records(here / "rankings.jsonl", Ranking), demonstrations=[],
    out=out, seed=0, report=silent,
)
"""


def run(here: Path, out: Path, micro: int, *launcher: str) -> dict[str, torch.Tensor]:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    script = here / "script.py"
    script.write_text(SCRIPT)
    started = subprocess.Popen(
        [sys.executable, *launcher, str(script), str(here), str(out), str(micro)],
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.PIPE,
    )
    try:
        _, complaint = started.communicate(timeout=140)
    finally:
        started.terminate()  # the launcher then ends its processes; a kill would leave them behind
        started.wait(timeout=30)
    assert started.returncode == 0, complaint.decode()[-2000:]
    return load_file(out / "model" / "model.safetensors")


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_with_four_prompts_equal_one_with_eight(tmp_path: Path) -> None:
    rng = random.Random(0)
    tasks = tiny_tasks(53, rng)  # so that the last batch is not full
    write_jsonl(tmp_path / "tasks.jsonl", [task.to_json() for task in tasks])
    rankings = tiny_rankings(tasks, ["ann"], rng)
    write_jsonl(tmp_path / "rankings.jsonl", [ranking.to_json() for ranking in rankings])
    tiny_base(tmp_path / "base")
    one = run(tmp_path, tmp_path / "one", 8)
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    two = run(tmp_path, tmp_path / "two", 2, *launcher)
    away = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])
    assert (away < 1e-5).float().mean() > 0.99
    assert away.max() < 1e-4
