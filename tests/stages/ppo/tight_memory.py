"""PPO under a limit on addresses:  python -m tests.stages.ppo.tight_memory FOLDER SIZE

Once models can be loaded, 700 MiB are left; the logits of a whole minibatch and what is computed of
them take more. Prints how many episodes were read at once.
"""

import resource
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from reward_models.model import RewardModel
from stages.models import load_tokenizer, tokenizer_hash
from stages.ppo import micro_batches
from stages.ppo import train as ppo_train
from stages.ppo.config import PPOConfig
from stages.ppo.micro_batches import MicroBatch
from tests.reward_models.tiny import tiny_tokenizer
from tests.stages.ppo.tiny_ppo import tiny_config, train

ROOM = 700 * 2**20
TOKENS = 16


def make_world(folder: Path) -> tuple[Path, Path]:
    """A narrow model with many words: logits are nearly all it needs memory for."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=16384,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(shape).save_pretrained(str(folder / "sft"))
    tiny_tokenizer().save_pretrained(str(folder / "sft"))
    reward = RewardModel.from_base(folder / "sft", seed=3)
    reward.record_training(tokenizer_hash(load_tokenizer(folder / "sft")), {"simulated"})
    reward.save(folder / "reward")
    return folder / "sft", folder / "reward"


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
    results = []

    def fitting(*given: Any) -> MicroBatch:
        results.append(micro_batches.fitting(*given))
        return results[-1]

    vars(ppo_train)["fitting"] = fitting
    limit = psutil.Process().memory_info().vms + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    train(world, folder / "out", settings(size))
    print(*(one.episodes for one in results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2].isdigit() else sys.argv[2])
