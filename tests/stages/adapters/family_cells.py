"""One cell of the grid families x stages x architectures: tiny models through all three stages."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from reward_models.records import Demonstration, Prompt
from stages.adapters.config import (
    BitFit,
    Bottleneck,
    Full,
    LoRA,
    Prefix,
    Probe,
    PTuningV2,
    Restricted,
)
from stages.adapters.config import Prompt as SoftPrompt
from stages.ppo.train import train_ppo
from stages.progress import Report, Step
from stages.reward.config import RewardConfig
from stages.reward.train import train_reward
from stages.sft.config import SFTConfig
from stages.sft.train import train_sft
from tests.reward_models.tiny import WORDS, tiny_rankings, tiny_tasks, tiny_tokenizer
from tests.stages.ppo.tiny_ppo import tiny_config

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
TOKENS: dict[str, Any] = {
    "vocab_size": 3 + len(WORDS),
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "initializer_range": 0.2,  # untrained weights that do something
}
ARCHITECTURES = ("gpt2", "llama", "qwen3")
FAMILIES: dict[str, Full | Restricted] = {
    "full": Full(),
    "probe": Probe(),
    "lora": LoRA(rank=2, alpha=4.0),
    "bottleneck": Bottleneck(width=4),
    "prefix": Prefix(length=3),
    "prompt": SoftPrompt(length=3),
    "ptuning-v2": PTuningV2(length=3),
    "bitfit": BitFit(),
}
VARIANTS: dict[str, Full | Restricted] = {
    "full-top": Full(top_layers=1),
    "probe-mlp": Probe(kind="mlp", width=4),
    "bottleneck-pfeiffer": Bottleneck(width=4, placement="pfeiffer"),
    "bottleneck-parallel": Bottleneck(width=4, placement="parallel", scaling=4.0),
    "prefix-reparametrised": Prefix(length=3, reparametrise=6),
    "prompt-random": SoftPrompt(length=3, begin="random"),
    "prompt-text": SoftPrompt(length=3, begin="text", text="good w1"),
}
# Untrained models of width 16 want large steps, and the fewer numbers move, the larger.
RATES = {
    "full": 0.01,
    "probe": 0.05,
    "lora": 0.05,
    "bottleneck": 0.1,
    "prefix": 0.3,
    "prompt": 0.3,
    "ptuning-v2": 0.3,
    "bitfit": 0.1,
}
DEMONSTRATIONS = [Demonstration(f"w0 {word}", "good good w2") for word in WORDS[:12]]


class PowerCutError(Exception):
    """Stands for whatever ends a run in the middle."""


def tiny_model(architecture: str) -> PreTrainedModel:
    """Two layers; Llama and Qwen3 share key-value heads, GPT-2 and Qwen3 tie their embeddings."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        match architecture:
            case "gpt2":
                return GPT2LMHeadModel(
                    GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=64, **TOKENS)
                )
            case "llama":
                return LlamaForCausalLM(
                    LlamaConfig(
                        max_position_embeddings=64,
                        tie_word_embeddings=False,
                        **SIZES,
                        **HEADS,
                        **TOKENS,
                    )
                )
            case _:
                return Qwen3ForCausalLM(
                    Qwen3Config(
                        max_position_embeddings=64,
                        head_dim=8,
                        tie_word_embeddings=True,
                        **SIZES,
                        **HEADS,
                        **TOKENS,
                    )
                )


def save_base(architecture: str, folder: Path) -> Path:
    """The model of that architecture with its tokenizer."""
    tiny_model(architecture).save_pretrained(str(folder))
    tiny_tokenizer().save_pretrained(str(folder))
    return folder


@dataclass
class Listener:
    """Keeps what was reported; ends the run after so many reports."""

    cut_after: int | None = None

    def __post_init__(self) -> None:
        self.steps: list[Step] = []

    def __call__(self, step: Step) -> None:
        self.steps.append(step)
        if self.cut_after is not None and step.done >= self.cut_after:
            raise PowerCutError

    def of(self, name: str) -> list[float]:
        """All values of a metric."""
        return [step.metrics[name] for step in self.steps if name in step.metrics]


@dataclass
class Cell:
    """A family on a base: its stages, each trained once and kept."""

    base: Path
    adaptation: Full | Restricted
    folder: Path
    reports: dict[str, Listener] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """The learning rate of all three stages."""
        return RATES[self.adaptation.family]

    def sft(self, out: Path, report: Report, **changes: Any) -> None:
        """Stage one on demonstrations that all end alike."""
        settings = {"epochs": 3, "batch_size": 4, "learning_rate": self.rate, "dropout": 0.0}
        train_sft(
            SFTConfig.model_validate(
                settings | {"adaptation": self.adaptation.model_dump()} | changes
            ),
            base=self.base,
            demonstrations=DEMONSTRATIONS,
            validation=DEMONSTRATIONS[:2],
            out=out,
            seed=3,
            report=report,
        )

    def reward(self, out: Path, report: Report, **changes: Any) -> None:
        """Stage two on rankings by good words."""
        rng = random.Random(0)
        tasks = tiny_tasks(48, rng)
        settings = {
            "learning_rate": self.rate,
            "prompts_per_batch": 8,
            "held_out": 0.15,
            "checkpoint_every": 2,
            "epochs": 3,
        }
        train_reward(
            RewardConfig.model_validate(
                settings | {"adaptation": self.adaptation.model_dump()} | changes
            ),
            base=self.base,
            tasks=tasks,
            rankings=tiny_rankings(tasks, ["ann"], rng),
            demonstrations=DEMONSTRATIONS,
            out=out,
            seed=0,
            report=report,
        )

    def ppo(self, out: Path, report: Report, **changes: Any) -> None:
        """Stage three from what the first two left."""
        settings: dict[str, Any] = {
            "adaptation": self.adaptation.model_dump(),
            "learning_rate": self.rate,
            "responses_per_prompt": 2,
            "checkpoint_every": 1,
        }
        train_ppo(
            tiny_config(**settings | changes),
            policy=self.trained("sft") / "model",
            reward_model=self.trained("reward") / "model",
            prompts=[Prompt(f"w0 {' '.join(WORDS[i % 5 : i % 5 + 1 + i % 3])}") for i in range(16)],
            out=out,
            seed=0,
            report=report,
        )

    def run(self, stage: str, out: Path, report: Report) -> None:
        """One of the three stages."""
        {"sft": self.sft, "reward": self.reward, "ppo": self.ppo}[stage](out, report)

    def steps(self, stage: str) -> Listener:
        """The reports of a stage, which is run if it has not been."""
        if stage not in self.reports:
            listener = Listener()
            self.run(stage, self.folder / stage, listener)
            self.reports[stage] = listener
        return self.reports[stage]

    def trained(self, stage: str) -> Path:
        """The folder of a stage, which is run if it has not been."""
        self.steps(stage)
        return self.folder / stage
