"""SFT's epoch, chosen again: by the reward model's score on validation prompts (appendix C.1).

SFT first chooses by validation loss, because no reward model exists yet. This stage trains nothing;
its model is the "SFT" that PPO starts from, is held to, and is compared with.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.runs.manifest import with_base
from pipeline.runs.stage import Source
from pipeline.steps.step import ExperimentStage
from stages.config import without_external_names
from stages.progress import Report
from stages.sft.config import SFTConfig


@dataclass(frozen=True)
class Select(ExperimentStage):
    """Choose among the epochs of SFT by the reward model."""

    kind = "select"
    about = "SFT's epoch by reward"

    def inputs(self) -> Mapping[str, Source]:
        return {
            "sft": self.folder / "sft/model",
            **with_base("reward", self.reward_model_of(1)),
            "prompts": self.folder / "data/validation_prompts.jsonl",
        }

    @property
    def sft(self) -> SFTConfig:
        """The settings of the stage that is chosen from."""
        assert self.config.sft is not None
        return self.config.sft

    def settings(self) -> Mapping[str, Any]:
        return self.seeded(
            selection=without_external_names(self.sft.selection),
            precision=self.sft.precision.model_dump(mode="json"),
        )

    def check_data(self) -> None:
        sft = self.sft
        new_tokens = sft.selection.max_new_tokens
        self.require_prompts_fit("validation", new_tokens, [sft.adaptation])

    def run(self, out: Path, report: Report) -> None:
        from stages.sft.selection import choose_epoch

        self.seed_process()
        choose_epoch(
            self.folder / "sft",
            reward_model=self.reward_model_of(1),
            selection_prompts=self.data.prompts("validation"),
            sampling=self.sft.selection,
            out=out,
            seed=self.config.seed,
            report=report,
            precision=self.sft.precision,
        )
