"""Names and order of the stages in a run's folder, where stages two and three may have rounds.

round 1   sample → label → reward → select → ppo → ppo-ptx
round n   sample-n → label-n → reward-n → ppo-n → ppo-ptx-n
"""

import re
from pathlib import Path

FIRST_ROUND = ("data", "sft", "sample", "label", "reward", "select", "ppo-init", "ppo", "ppo-ptx")


def in_round(stage: str, number: int) -> str:
    """Return the name of a stage, which is its folder's too, in round `number` (from 1)."""
    return stage if number == 1 else f"{stage}-{number}"


def stage_names(run: Path) -> list[str]:
    """Return every stage whose folder lies in the run, in the order of an experiment."""
    later = [
        in_round(stage, number)
        for number in range(2, last_round(run, "sample") + 1)
        for stage in ("sample", "label", "reward", "ppo", "ppo-ptx")
    ]
    return [name for name in (*FIRST_ROUND, *later, "evaluate") if (run / name).is_dir()]


def is_ppo(stage: str) -> bool:
    """Return true for a stage that trains a policy by PPO, in any round."""
    return re.fullmatch(r"ppo(-ptx)?(-\d+)?", stage) is not None


def last_round(run: Path, stage: str = "reward") -> int:
    """Return the last round whose `stage` lies in the run's folder; 1 where none does."""
    number = 1
    while (run / in_round(stage, number + 1)).is_dir():
        number += 1
    return number


def latest(run: Path, stage: str = "reward") -> Path:
    """Return the folder that the last round of `stage` left in the run."""
    return run / in_round(stage, last_round(run, stage))
