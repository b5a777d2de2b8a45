"""Peak memory of one PPO run on a 135M model: all roles on one backbone, against four models.

    python -m tests.benchmarks.one_backbone WORK            writes a line of JSON for each way
    python -m tests.benchmarks.one_backbone WORK one-backbone  measures one way in this process

one-backbone  LoRA policy, reference, reward model and critic as adapters on one backbone
four-bases the same run with sharing switched off: each role's set on a base of its own
four-full  full fine-tuning of policy and critic, two frozen copies
narrow     one backbone again, as deep and of hardly any width: what is there whatever weights weigh

The weights are random (SmolLM2-135M's shape): what is measured is memory, in VmHWM of a fresh
process, loading included; `over_libraries_MiB` is without what the interpreter and the libraries
hold before any model is loaded.
"""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from reward_models.model import RewardModel
from stages.adapters.config import LoRA
from stages.models import load_tokenizer, tokenizer_hash
from stages.ppo import models
from stages.reward.config import RewardConfig
from tests.reward_models.tiny import tiny_tokenizer
from tests.stages.ppo.tiny_ppo import tiny_config, train

WAYS = ("one-backbone", "four-bases", "four-full", "narrow")
SHAPE = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=2048,
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_id=1,
    pad_token_id=0,
)
NARROW = LlamaConfig.from_dict(
    SHAPE.to_dict() | {"vocab_size": 28, "hidden_size": 18, "intermediate_size": 32, "head_dim": 2}
)
SET = LoRA(rank=8, alpha=16.0)


def prepare(work: Path, shape: LlamaConfig) -> None:
    """A base, and reward models of both kinds on it."""
    from stages.reward.train import new_reward_model

    if (work / "full-reward").is_dir():
        return
    torch.manual_seed(0)
    LlamaForCausalLM(shape).save_pretrained(str(work / "base"))
    tiny_tokenizer().save_pretrained(str(work / "base"))
    digest = tokenizer_hash(load_tokenizer(work / "base"))
    restricted = new_reward_model(RewardConfig(adaptation=SET), work / "base", 0)
    for name, reward in (
        ("lora-reward", restricted),
        ("full-reward", RewardModel.from_base(work / "base", 0)),
    ):
        reward.record_training(digest, {"simulated"})
        reward.save(work / name, load_tokenizer(work / "base"))


def _share_nothing(_: torch.nn.Module, __: torch.nn.Module) -> None:
    """In place of `share_frozen`."""


def measure(work: Path, way: str) -> dict[str, object]:
    """Train for one rollout of eight episodes in this process."""
    libraries = _memory("VmRSS")
    if way == "four-bases":
        vars(models)["share_frozen"] = _share_nothing
        vars(models)["copy_sharing_frozen"] = copy.deepcopy
    full = way == "four-full"
    config = tiny_config(
        episodes=8,
        micro_batch_size=1,
        sampling={"max_new_tokens": 16, "batch_size": 8},
        adaptation={"family": "full"} if full else SET.model_dump(),
        checkpoint_every=1,
        ema_decay=None,
    )
    world = (work / "base", work / ("full-reward" if full else "lora-reward"))
    out = work / "out" / way
    shutil.rmtree(out, ignore_errors=True)  # a run that is done would not be trained again
    train(world, out, config)
    peak = _memory("VmHWM")
    saved = list((out / "model").glob("*.safetensors"))
    checkpoint = max((out / "checkpoints").glob("iteration-*/state.pt"))
    return {
        "way": way,
        "peak_MiB": peak,
        "libraries_MiB": libraries,
        "over_libraries_MiB": peak - libraries,
        "policy_numbers_bytes": sum(_numbers_bytes(path) for path in saved),
        "policy_bytes": sum(path.stat().st_size for path in saved),
        "checkpoint_bytes": checkpoint.stat().st_size,
    }


def _numbers_bytes(path: Path) -> int:
    """Return the bytes of a file's tensors, without its header."""
    return sum(x.numel() * x.element_size() for x in load_file(path).values())


def _memory(name: str) -> int:
    """Return a value of this process from the kernel, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    if len(sys.argv) > 2:
        print(json.dumps(measure(folder, sys.argv[2])))
    else:
        prepare(folder, SHAPE)
        prepare(folder / "narrow", NARROW)
        for name in WAYS:
            work = folder / "narrow" if name == "narrow" else folder
            subprocess.run([sys.executable, "-m", __spec__.name, str(work), name], check=True)
