"""Stage two: the reward model, trained on the rankings of all rounds so far."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.runs.manifest import model_source, with_base
from pipeline.runs.stage import Source, in_round
from pipeline.steps.label import labels_until, read_labels, use_of
from pipeline.steps.step import ExperimentStage, has_demonstrations
from stages.config import without_external_names
from stages.progress import Report
from stages.reward.config import RewardConfig


@dataclass(frozen=True)
class Reward(ExperimentStage):
    """Train the reward model; with folds also others that never saw a part of the rankings."""

    kind = "reward"
    about = "reward model"
    work = "training"

    @property
    def base(self) -> Source:
        """The model that the reward model starts from."""
        match self.config.reward_base:
            case "sft":
                return self.sft_model
            case "base":
                return self.base_model
            case name:
                return model_source(name)

    @property
    def reward(self) -> RewardConfig:
        """The settings of the stage."""
        assert self.config.reward is not None
        return self.config.reward

    def inputs(self) -> Mapping[str, Source]:
        inputs = with_base("base", self.base)
        for number, labels in enumerate(labels_until(self.folder, self.round), 1):
            inputs[in_round("tasks", number)] = labels / "tasks.jsonl"
            inputs[in_round("rankings", number)] = labels / "rankings.jsonl"
        if has_demonstrations(self.config):
            inputs["demonstrations"] = self.folder / "data/demonstrations.jsonl"
        return inputs

    def settings(self) -> Mapping[str, Any]:
        use = use_of(self.config.labeling)  # without judges their rankings are not there
        more = {"use": use} if use == "judges" else {}
        return self.seeded(reward=without_external_names(self.reward), **more)

    def run(self, out: Path, report: Report) -> None:
        from stages.reward.folds import write_folds
        from stages.reward.train import train_reward, within_positions

        self.seed_process()
        seed = self.config.seed
        tasks, rankings = read_labels(labels_until(self.folder, self.round))
        train_reward(
            self.reward,
            base=self.base,
            tasks=tasks,
            rankings=rankings,
            demonstrations=self.data.demonstrations(),
            out=out,
            seed=seed,
            report=report,
            use=use_of(self.config.labeling),
        )
        write_folds(
            within_positions(self.reward, self.base),
            base=self.base,
            tasks=tasks,
            rankings=rankings,
            out=out,
            seed=seed,
            report=report,
            use=use_of(self.config.labeling),
        )
