"""The interface of a stage and of the ranks that train one, and the names of stages by round.

round 1   sample → label → reward → select → ppo → ppo-ptx
round n   sample-n → label-n → reward-n → ppo-n → ppo-ptx-n
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from stages.progress import Report

Source = Path | str  # a file or folder, or the name of a model or of a data set of the hub
Work = Literal["copying", "computing", "training", "people"]
FIRST_ROUND = ("data", "sft", "sample", "label", "reward", "select", "ppo-init", "ppo", "ppo-ptx")


class Stage(Protocol):
    """One stage of an experiment: its inputs, the settings that decide its result, and its work."""

    @property
    def name(self) -> str:
        """The name of the stage and of its folder in the run."""

    @property
    def about(self) -> str:
        """A few words for the display."""

    @property
    def work(self) -> Work:
        """The kind of work: only training is spread over ranks.

        A later stage's command runs this one where it is missing, unless that trains or waits for
        people; a stage that copies is run whenever its sources have changed.
        """
        return "computing"

    def inputs(self) -> Mapping[str, Source]:
        """Return everything whose content decides the result, by name."""

    def settings(self) -> Mapping[str, Any]:
        """Return the settings that decide the result, the seed among them."""

    def check_settings(self) -> None:
        """Raise ValueError for settings that cannot work, before anything is written."""
        return

    def check_data(self) -> None:
        """Raise ValueError for data sets that do not fit, before anything is trained on them."""
        return

    def run(self, out: Path, report: Report) -> None:
        """Write the artefact to `out`, or resume from what an interrupted run left there."""

    def labels(self, out: Path) -> set[str]:  # noqa: ARG002 - for stages that add rankings
        """Return the kinds of annotators whose rankings the finished stage adds."""
        return set()

    def final_settings(self, out: Path) -> Mapping[str, Any]:  # noqa: ARG002 - likewise
        """Return settings that are known only when the stage is done, such as people's answers."""
        return {}


class Ranks(Protocol):
    """The processes that train a stage, where there are several; see `pipeline/launch`."""

    def train(self, run: Path, stage: str, report: Report) -> None:
        """Run a stage on all ranks; raise RankFailed, or ValueError for bad input."""

    def manifest(self) -> Mapping[str, Any]:
        """Return what an artefact's manifest records of them."""


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
