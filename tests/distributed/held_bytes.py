"""The bytes of every rank: parameters and Adam's moments, in bytes.

    OMP_NUM_THREADS=1 python -m tests.distributed.held_bytes

prints a table for all shardings over 1, 2 and 4 ranks: a Llama of four layers, all of it trained by
stage one's trainer in float32. Counted are the tensors themselves, shards where there are shards,
not the process, whose memory is mostly libraries.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.sft_config import SFTConfig as SupervisedArguments

from stages.adapters.config import Full
from stages.data.supervised import Example
from stages.distributed import compat
from stages.distributed.state import named_shards
from stages.models import adapt, load_policy, load_tokenizer
from stages.progress import silent
from stages.sft.trainer import SupervisedTrainer
from stages.training_arguments import training_arguments
from tests.distributed.ranks import SHARDINGS, Sharding, run_ranks
from tests.reward_models.tiny import WORDS, tiny_tokenizer

Held = dict[str, int]  # bytes, by what they are


def held_bytes(model: nn.Module, optimizer: Any) -> Held:
    """Parameters, moments, and ZeRO's float32 masters, which double the parameters in float32."""
    adam, zero = compat.unwrap_optimizer(optimizer)
    moments = [state[key] for state in adam.state.values() if state for key in compat.MOMENTS]
    masters = [] if zero is None else compat.zero_partitions(zero)
    return {
        "parameters": sum(_local_bytes(p) for p in named_shards(model).values()),
        "moments": sum(_local_bytes(x) for x in moments),
        "masters": sum(_local_bytes(x) for x in masters),
    }


def after_training(base: Path) -> Held:
    """The bytes of this rank after two steps of stage one's trainer."""
    tokenizer = load_tokenizer(base)
    with TemporaryDirectory() as out:
        arguments = training_arguments(
            SupervisedArguments,
            {
                "output_dir": out,
                "max_steps": 2,
                "per_device_train_batch_size": 1,
                "save_strategy": "no",
                "max_length": None,
                "dataset_kwargs": {"skip_prepare_dataset": True},
                "remove_unused_columns": False,
                "activation_checkpointing": False,
                "bf16": False,
                "report_to": "none",
                "disable_tqdm": True,
            },
            {},
        )
        examples = [Example([3, 4, 5, 1], 2)] * 8
        model = adapt(load_policy(base), Full())
        trainer = SupervisedTrainer.on(model, tokenizer, arguments, examples, [], silent)
        trainer.train()
        assert trainer.model is not None
        return held_bytes(trainer.model, trainer.optimizer)


def small_base(folder: Path) -> Path:
    """A Llama of four layers of width 64."""
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=3 + len(WORDS),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    ).save_pretrained(str(folder))
    tiny_tokenizer().save_pretrained(str(folder))
    return folder


def of_every_rank(base: Path, sharding: Sharding, ranks: int) -> list[Held]:
    """The bytes of each rank; one plain process where `sharding` is none."""
    return run_ranks(after_training, base, processes=ranks, sharding=sharding)


def _local_bytes(x: Tensor) -> int:
    if isinstance(x, DTensor):
        return _local_bytes(x.to_local())
    shard = vars(x).get("ds_tensor", x)
    return int(shard.numel() * shard.element_size())


def main() -> None:
    """Print the table: bytes of the rank that holds most, and their share of one process's."""
    with TemporaryDirectory() as folder:
        base = small_base(Path(folder) / "base")
        alone = of_every_rank(base, "none", 1)[0]
        whole = alone["parameters"] + alone["moments"]
        print("| sharding | ranks | parameters | moments | of one process | float32 masters |")
        print("|---|---|---|---|---|---|")
        print(f"| none | 1 | {alone['parameters']:,} | {alone['moments']:,} | 100% | 0 |")
        for sharding in SHARDINGS:
            for ranks in (1, 2, 4):
                held = max(of_every_rank(base, sharding, ranks), key=lambda one: sum(one.values()))
                share = (held["parameters"] + held["moments"]) / whole
                print(
                    f"| {sharding} | {ranks} | {held['parameters']:,} | {held['moments']:,} | "
                    f"{share:.0%} | {held['masters']:,} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
