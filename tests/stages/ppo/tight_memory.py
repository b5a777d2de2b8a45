"""PPO under a limit on addresses:  python -m tests.stages.ppo.tight_memory FOLDER SIZE

Once models can be loaded, 700 MiB are left; the logits of a whole minibatch, which are not made in
chunks here, and what is computed of them take more. Prints how many episodes were read at once.
"""

import resource
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from stages.ppo import forward_checks, micro_batches
from stages.ppo import train as ppo_train
from stages.ppo.config import PPOConfig
from stages.ppo.micro_batches import MicroBatch
from tests.reward_models.tiny import tiny_base, tiny_reward
from tests.stages.ppo.tiny_ppo import tiny_config, train

ROOM = 700 * 2**20
TOKENS = 16


def make_world(folder: Path) -> tuple[Path, Path]:
    """A narrow model with many words: logits are nearly all it needs memory for."""
    shape = {"vocab_size": 16384, "num_hidden_layers": 1}
    policy = tiny_base(folder / "sft", tied=True, **shape)
    return policy, tiny_reward(policy, folder / "reward")


def settings(size: int | str) -> PPOConfig:
    """One rollout of 256 episodes of 16 tokens, a minibatch too: 256 MiB a copy of the logits."""
    return tiny_config(
        episodes=256,
        episodes_per_rollout=256,
        minibatch=256,
        micro_batch_size=size,
        sampling={"max_new_tokens": TOKENS, "batch_size": 32},
    )


def main(folder: Path, size: int | str) -> None:
    """Train with what is left of memory."""
    torch.set_num_threads(1)
    world = make_world(folder)
    sizes = []

    def fitting(*given: Any) -> MicroBatch:
        sizes.append(micro_batches.fitting(*given))
        return sizes[-1]

    vars(ppo_train)["fitting"] = fitting
    vars(forward_checks)["chunk_of_logits"] = lambda _: None
    limit = psutil.Process().memory_info().vms + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    train(world, folder / "out", settings(size))
    print(*(one.episodes for one in sizes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2].isdigit() else sys.argv[2])
