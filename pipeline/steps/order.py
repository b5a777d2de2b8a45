"""Iterating stages two and three (section 3.5): names and places of what each round makes.

    round 1   sample → label → reward → select → ppo → ppo-ptx
    round n   sample-n → label-n → reward-n → ppo-n → ppo-ptx-n

A later round samples from the policy that the round before it trained, beside the policies that
the config names, has the outputs ranked, trains the reward model anew on the rankings of all rounds
so far, and trains new policies against it. They start from the same model as the first round's, so
that a KL has one meaning in all of them.
"""

import re
from pathlib import Path

from pipeline.config.experiment import ExperimentConfig

FIRST = ("data", "sft", "sample", "label", "reward", "select", "ppo-init", "ppo", "ppo-ptx")


def named(stage: str, number: int) -> str:
    """The stage's name, which is its folder's too, in round `number` (from 1)."""
    return stage if number == 1 else f"{stage}-{number}"


def told(about: str, number: int) -> str:
    """The same for what a stage is about."""
    return about if number == 1 else f"round {number}: {about}"


def trained_policies(config: ExperimentConfig, number: int) -> list[str]:
    """The names of the policies that a round trains, the last one the best."""
    kinds = (("ppo", config.ppo), ("ppo-ptx", config.ppo_ptx))
    return [named(name, number) for name, settings in kinds if settings is not None]


def stage_names(run: Path) -> list[str]:
    """Every stage whose folder lies in the run, in the order in which they are done."""
    again = [
        named(stage, number)
        for number in range(2, last_round(run, "sample") + 1)
        for stage in ("sample", "label", "reward", "ppo", "ppo-ptx")
    ]
    return [name for name in (*FIRST, *again, "evaluate") if (run / name).is_dir()]


def is_ppo(stage: str) -> bool:
    """Whether the stage trains a policy by PPO, in whatever round."""
    return re.fullmatch(r"ppo(-ptx)?(-\d+)?", stage) is not None


def last_round(run: Path, stage: str = "reward") -> int:
    """The last round whose `stage` lies in the run's folder; 1 where none does."""
    number = 1
    while (run / named(stage, number + 1)).is_dir():
        number += 1
    return number


def latest(run: Path, stage: str = "reward") -> Path:
    """The folder that the last round of `stage` left in the run."""
    return run / named(stage, last_round(run, stage))
