"""A tiny policy and reward model on disk, prompts, and a short PPO config."""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from reward_models.atomic_files import write_jsonl
from reward_models.model import RewardModel
from reward_models.records import Prompt
from stages.generation.config import SamplingConfig
from stages.generation.generate import generate_responses
from stages.models import load_policy, load_tokenizer, tokenizer_hash
from stages.ppo.config import PPOConfig
from stages.ppo.forward import evaluate
from stages.ppo.forward_checks import obstacle_to_packing
from stages.ppo.models import Models, load_models
from stages.ppo.overoptimization import GoldReward
from stages.ppo.rollout import Episodes, Rollout
from stages.ppo.run import PPORun
from stages.ppo.train import train_ppo
from stages.progress import Report, Step, silent
from stages.reward.batches import RankedPrompt
from tests.reward_models.tiny import WORDS, tiny_base, tiny_reward

PROMPTS = [Prompt(" ".join(WORDS[i % 7 : i % 7 + 2 + i % 5])) for i in range(20)]
FAMILIES: dict[str, dict[str, Any]] = {
    "full": {"family": "full"},
    "top_layers": {"family": "full", "top_layers": 1},
    "lora": {"family": "lora", "rank": 2},
    "lora-above": {"family": "lora", "rank": 2, "target_modules": ["layers.1.mlp.up_proj"]},
    "bottleneck": {"family": "bottleneck", "width": 4},
    "prefix": {"family": "prefix", "length": 3},
    "prompt": {"family": "prompt", "length": 3},
    "ptuning-v2": {"family": "ptuning-v2", "length": 3},
    "bitfit": {"family": "bitfit"},
    "probe": {"family": "probe"},
}
TEXTS = [" ".join(WORDS[(i * 3 + j) % len(WORDS)] for j in range(9)) for i in range(30)]


def tiny_world(folder: Path) -> tuple[Path, Path]:
    """The folders of a policy and of a reward model that reads its tokenizer."""
    policy = tiny_base(folder / "sft")
    return policy, tiny_reward(policy, folder / "reward", scale=4.0)  # to learn from differences


def probe_world(folder: Path) -> tuple[Path, Path]:
    """The same, where the reward model is a head on the policy's own transformer."""
    policy = tiny_base(folder / "sft")
    reward = RewardModel.probe(
        load_policy(policy), seed=3, base=str(policy), pooling="last", inner_width=0
    )
    with torch.no_grad():
        reward.head.weight.mul_(4.0)
    reward.record_training(tokenizer_hash(load_tokenizer(policy)), {"simulated"})
    reward.save(folder / "reward")
    return policy, folder / "reward"


def tiny_config(**changes: Any) -> PPOConfig:
    settings: dict[str, Any] = {
        "episodes": 32,
        "episodes_per_rollout": 8,
        "minibatch": 4,
        "micro_batch_size": 2,
        "learning_rate": 1e-3,
        "critic_learning_rate": 1e-3,
        "warmup_iterations": 1,
        "sampling": {"max_new_tokens": 6, "batch_size": 8},
        "health": {"action": "warn"},
        "checkpoint_every": 2,
    }
    return PPOConfig.model_validate(settings | changes)


def tiny_models(world: tuple[Path, Path], config: PPOConfig) -> Models:
    device = torch.device("cpu")
    return load_models(*world, config.adaptation, config.models, seed=0, device=device)


def tiny_run(world: tuple[Path, Path], config: PPOConfig) -> PPORun:
    models = tiny_models(world, config)
    packed = config.packed and obstacle_to_packing(models, [5, 6, 7], 4, 2) is None
    out = world[0].parent / "out"
    return PPORun(replace(models, packed=packed), config, Accelerator(), seed=0, out=out)


def roll_out(
    models: Models,
    prompts: Sequence[list[int]],
    sampling: SamplingConfig,
    generator: torch.Generator,
    sharing: int = 1,
) -> Episodes:
    """A response to each prompt from the models' policy."""
    responses = generate_responses(
        models.policy, models.tokenizer, prompts, sampling, generator=generator
    )
    return Episodes.build(prompts, responses, torch.device("cpu"), sharing=sharing)


def outputs(models: Models, episodes: Episodes, temperature: float = 1.0) -> Rollout:
    """The outputs of all four models, with all episodes in one batch."""
    return evaluate(models, episodes, temperature=temperature, batch_size=None)[0]


def texts_file(folder: Path, texts: Sequence[str] = TEXTS) -> Path:
    path = folder / "texts.jsonl"
    write_jsonl(path, ({"text": text} for text in texts))
    return path


def _pretraining(folder: Path) -> Path:
    """The texts; several ranks must not all write them."""
    path = folder / "texts.jsonl"
    return path if path.exists() else texts_file(folder)


def train(
    world: tuple[Path, Path],
    out: Path,
    config: PPOConfig,
    report: Report = silent,
    seed: int = 0,
    held_out: Sequence[RankedPrompt] = (),
    gold: GoldReward | None = None,
) -> None:
    train_ppo(
        config,
        policy=world[0],
        reward_model=world[1],
        prompts=PROMPTS,
        pretraining=_pretraining(world[0].parent) if config.pretraining else None,
        validation=PROMPTS[:5] if config.validation else (),
        held_out=held_out,
        gold=gold,
        out=out,
        seed=seed,
        report=report,
    )


def metrics_of(world: tuple[Path, Path], out: Path, config: PPOConfig) -> list[dict[str, float]]:
    """Train, and return what every iteration reported."""
    steps: list[Step] = []
    train(world, out, config, steps.append)
    return [dict(step.metrics) for step in steps if step.done]


def program_of(world: tuple[Path, Path], out: Path, config: PPOConfig, before: str = "") -> str:
    """The source of a process that trains; `before` is done first."""
    return textwrap.dedent(f"""
        from pathlib import Path
        import torch
        torch.set_num_threads(1)
        from stages.ppo.config import PPOConfig
        from tests.stages.ppo.tiny_ppo import train
        config = PPOConfig.model_validate_json({config.model_dump_json()!r})
        world = (Path({str(world[0])!r}), Path({str(world[1])!r}))
        {before}
        train(world, Path({str(out)!r}), config, lambda step: step.done and print(step.done))
    """)
