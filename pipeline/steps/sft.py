"""Stage one: fine-tuning on demonstrations; the epoch is chosen by validation loss."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.runs.stage import Source
from pipeline.steps.step import ExperimentStage
from stages.progress import Report
from stages.sft.config import SFTConfig


@dataclass(frozen=True)
class Sft(ExperimentStage):
    """Fine-tune the base, for the experiment or, as `for_ppo`, for PPO alone (appendix C.3)."""

    for_ppo: bool = False
    work = "training"

    @property
    def name(self) -> str:
        return "ppo-init" if self.for_ppo else "sft"

    @property
    def about(self) -> str:
        return "fine-tuning on demonstrations" + (", for PPO" if self.for_ppo else "")

    @property
    def sft(self) -> SFTConfig:
        chosen = self.config.ppo_init if self.for_ppo else self.config.sft
        assert chosen is not None
        return chosen

    def inputs(self) -> Mapping[str, Source]:
        data = self.folder / "data"
        inputs: dict[str, Source] = {
            "base": self.base_model,
            "demonstrations": data / "demonstrations.jsonl",
            "validation": data / "validation.jsonl",
        }
        if self.sft.pretraining is not None:
            inputs["texts"] = data / "pretraining_texts.jsonl"
        return inputs

    def settings(self) -> Mapping[str, Any]:
        return self.seeded(sft=self.sft.model_dump(mode="json", exclude={"selection"}))

    def check_data(self) -> None:
        mix = self.sft.pretraining
        if mix is not None:
            key = f"{self.name.replace('-', '_')}.pretraining.tokens_per_example"
            self.require_positions(mix.tokens_per_example, key)

    def run(self, out: Path, report: Report) -> None:
        from stages.sft.train import train_sft

        self.seed_process()
        data = self.data
        mixes = self.sft.pretraining is not None
        train_sft(
            self.sft,
            base=self.base_model,
            demonstrations=data.demonstrations(),
            validation=data.demonstrations("validation"),
            reward_model=None,
            selection_prompts=(),
            out=out,
            seed=self.config.seed,
            report=report,
            pretraining=data.folder / "pretraining_texts.jsonl" if mixes else None,
        )
