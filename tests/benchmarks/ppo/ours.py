"""PPO steps of this project, one for every "go":  python -m tests.benchmarks.ppo.ours FOLDER."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from reward_models.model import RewardModel
from stages.adapters.config import Full, LoRA
from stages.generation.config import SamplingConfig
from stages.models import load_policy, load_tokenizer, tokenizer_hash
from stages.ppo.config import Cached, FixedKL, JointModels, OwnRollouts, PPOConfig, SeparateModels
from stages.ppo.forward_checks import obstacle_to_packing
from stages.ppo.models import load_models
from stages.ppo.ppo import iterate
from stages.ppo.run import PPORun
from stages.precision import resolved
from stages.reward.config import RewardConfig
from stages.reward.train import new_reward_model
from tests.benchmarks.cases import Case, prompts
from tests.benchmarks.worker import Meter, step_protocol


def settings(case: Case) -> PPOConfig:
    """The case in this project's words."""
    models = {"separate": SeparateModels(), "joint": JointModels(kind="joint")}
    return PPOConfig(
        models=models[case.models],
        rollouts=OwnRollouts(merged=case.merged),
        cached=Cached(first_forward=case.first_pass, lower_layers=case.lower_layers),
        episodes=10**6 // case.episodes * case.episodes,
        episodes_per_rollout=case.episodes,
        minibatch=case.minibatch,
        micro_batch_size=case.micro,
        inner_epochs=case.inner_epochs,
        learning_rate=case.learning_rate,
        critic_learning_rate=case.learning_rate,
        kl=FixedKL(coefficient=0.05),
        ema_decay=None,
        sampling=SamplingConfig(
            max_new_tokens=case.response_limit, batch_size=case.episodes, compiled=case.compiled
        ),
        adaptation=_adaptation(case),
    )


def _adaptation(case: Case) -> Full | LoRA:
    if case.lora_rank is not None:
        return LoRA(rank=case.lora_rank, alpha=32.0)
    return Full(top_layers=case.top_layers)


def reward_model(folder: Path, case: Case) -> Path:
    """Make a reward model on the policy's backbone, once; for joint passes a head on it."""
    path, base = folder / "reward", folder / "policy"
    if not path.is_dir():
        made = RewardModel.from_base(base, seed=0)
        if case.one_backbone:
            made = new_reward_model(RewardConfig(adaptation=_adaptation(case)), base, 0)
        elif case.models == "joint":
            made = RewardModel.probe(
                load_policy(base), 0, base=str(base), pooling="last", inner_width=0
            )
        made.record_training(tokenizer_hash(load_tokenizer(folder / "policy")), {"simulated"})
        made.save(path)
    return path


def new_run(case: Case, folder: Path) -> PPORun:
    """Return the trained models, of the policy in `folder` and a reward model on it.

    They are in the precision that `rlhf ppo` resolves from the same config.
    """
    config = settings(case)
    accelerator = Accelerator(cpu=case.device == "cpu", mixed_precision="no")
    models = load_models(
        folder / "policy",
        reward_model(folder, case),
        config.adaptation,
        config.models,
        seed=0,
        device=accelerator.device,
        numerics=resolved(config.precision, accelerator.device),
    )
    longest = max(prompts(case, 64 * case.episodes), key=len)
    with models.autocast():
        obstacle = obstacle_to_packing(models, longest, case.response_limit, 1)
    assert obstacle is None, obstacle
    return PPORun(replace(models, packed=case.packed), config, accelerator, seed=0, out=folder)


def main(folder: Path) -> None:
    """Steps until nobody asks any more."""
    send, wait_for_go = step_protocol()
    torch.set_num_threads(1)
    case = Case.read(folder / "case.json")
    run, given = new_run(case, folder), prompts(case, 64 * case.episodes)
    send({"ready": True})
    done = 0
    while wait_for_go():
        meter = Meter()
        metrics = iterate(run, given, done)
        done += 1
        took = meter.read()
        phases = {name: value for name, value in metrics.items() if name.startswith("time/")}
        send({**took, **phases, "tokens": metrics["ppo/response_tokens"]})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
