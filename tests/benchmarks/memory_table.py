"""Peaks of one process by model and precision:   python -m tests.benchmarks.memory_table

`rlhf doctor --gpu` for public shapes: prompts of 250 tokens, responses of 256 (two to a ranking),
one row or episode at a time, activations checkpointed, no moving average. GiB, as SFT / reward /
PPO. Nothing is loaded; a minute on two cores.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.experiment import ExperimentConfig
from pipeline.estimate.changes import LORA, on_a_card, with_values
from pipeline.estimate.lengths import CHARACTERS, lengths
from pipeline.estimate.stages import stage_estimates
from reward_models.atomic_files import write_jsonl

MODELS = (
    "Qwen/Qwen2.5-0.5B",
    "meta-llama/Llama-3.2-1B",
    "Qwen/Qwen2.5-3B",
    "Qwen/Qwen2.5-7B",
    "meta-llama/Llama-3.1-8B",
)
FP32, BF16, NF4 = ({"precision": {"weights": name}} for name in ("fp32", "bf16", "nf4"))
NARROW = {
    "optimizer": "adamw_8bit",
    "precision": {"compute": "bf16", "masters": "stochastic"},
}
WAYS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "LoRA, fp32": (LORA[1], FP32),
    "LoRA, bf16": (LORA[1], BF16),
    "LoRA, nf4": (LORA[1], NF4),
    "full, fp32": (FP32,),
    "full, bf16 compute": ({"precision": {"compute": "bf16"}},),
    "full, stochastic, 8-bit Adam": (NARROW,),
}


def one_card(folder: Path, model: str) -> ExperimentConfig:
    """Return an experiment on a public model with prompts of 250 tokens and responses of 256."""
    rows = folder / "rows.jsonl"
    four = int(CHARACTERS)  # characters a token, where there is no tokenizer
    write_jsonl(rows, [{"prompt": "p" * 250 * four, "response": "r" * 256 * four}] * 4)
    sampling = {"max_new_tokens": 256, "batch_size": 8}
    return ExperimentConfig.model_validate(
        {
            "name": "card",
            "model": model,
            "reward_base": "base",
            "data": {
                "kind": "files",
                "demonstrations": str(rows),
                "ranking_prompts": str(rows),
                "test_prompts": str(rows),
            },
            "labeling": {"kind": "human"},
            "sampling": {"responses": [2, 2], "settings": [sampling]},
            "sft": {"micro_batch_size": 1},
            "reward": {"micro_prompts": 1},
            "ppo": {"micro_batch_size": 1, "ema_decay": None, "sampling": sampling},
        }
    )


def gib(config: ExperimentConfig) -> dict[str, float]:
    """Return the peak of each stage on a card that computes in bfloat16 unless told otherwise."""
    estimates = stage_estimates(on_a_card(config), lengths(config), on_gpu=True)
    return {one.memory.stage: one.memory.total / 2**30 for one in estimates}


def main() -> None:
    """Print the table in Markdown."""
    print("| GiB: SFT / reward / PPO | " + " | ".join(WAYS) + " |")
    print("|---" * (1 + len(WAYS)) + "|")
    for model in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            plain = one_card(Path(folder), model)
            cells = []
            for values in WAYS.values():
                peaks = gib(with_values(plain, {"activation_checkpointing": True}, *values))
                cells.append(" / ".join(f"{peak:.1f}" for peak in peaks.values()))
        print(f"| {model.split('/')[1]} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
