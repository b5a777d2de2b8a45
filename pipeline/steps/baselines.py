"""The baselines that an experiment asks for, a stage each; nothing is trained on them.

A base behind a few demonstrations, the best of n answers, and the base fine-tuned on tasks written
as instructions (`instructions.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from pipeline.config.baselines import BestOfN, InstructionTuned, PromptedBase
from pipeline.config.experiment import ExperimentConfig
from pipeline.runs.manifest import model_source, named_inputs
from pipeline.runs.rounds import in_round
from pipeline.runs.stage import Source, Stage, seed_process
from pipeline.steps.data import DataFolder
from pipeline.steps.policies import fine_tuned
from stages.config import without_external_names
from stages.progress import Report, Step


def baseline_stages(config: ExperimentConfig, folder: Path) -> list[Stage]:
    """Return a stage for each baseline, in the config's order."""
    stages: list[Stage] = []
    for baseline in config.baselines:
        match baseline:
            case PromptedBase():
                stages.append(Prompted(config, folder, baseline))
            case BestOfN():
                stages.append(Best(config, folder, baseline))
            case InstructionTuned():
                stages.append(Instructed(config, folder, baseline))
            case _:
                assert_never(baseline)
    return stages


@dataclass(frozen=True)
class Prompted(Stage):
    """Choose the demonstrations that stand before every prompt of the base."""

    config: ExperimentConfig
    folder: Path
    baseline: PromptedBase
    about = "baseline: few-shot prefix for the base"

    @property
    def name(self) -> str:
        return self.baseline.name

    def inputs(self) -> Mapping[str, Source]:
        return {
            "base": model_source(self.config.model),
            "reward": _last_reward_model(self.config, self.folder),
            "demonstrations": self.folder / "data/demonstrations.jsonl",
            "prompts": self.folder / "data/validation_prompts.jsonl",
        }

    def settings(self) -> Mapping[str, Any]:
        return _settings(self.config, self.baseline)

    def run(self, out: Path, report: Report) -> None:
        from pipeline.models.prompting import choose_prefix

        seed_process(self.config.seed, self.config.threads)
        data = DataFolder(self.folder / "data")
        choose_prefix(
            self.baseline,
            base=model_source(self.config.model),
            reward_model=_last_reward_model(self.config, self.folder),
            demonstrations=data.demonstrations(),
            prompts=data.prompts("validation"),
            test_prompts=data.prompts("test"),
            sampling=self.config.evaluation.sampling,
            out=out,
            seed=self.config.seed,
            report=report,
        )


@dataclass(frozen=True)
class Best(Stage):
    """Write down which policy answers n times, and which reward model picks.

    The evaluation samples.
    """

    config: ExperimentConfig
    folder: Path
    baseline: BestOfN

    @property
    def name(self) -> str:
        return self.baseline.name

    @property
    def about(self) -> str:
        return f"baseline: best of {self.baseline.n} by the reward model"

    def inputs(self) -> Mapping[str, Source]:
        base = self.baseline.policy == "base"
        return {
            "policy": model_source(self.config.model)
            if base
            else fine_tuned(self.config, self.folder),
            "reward": _last_reward_model(self.config, self.folder),
        }

    def settings(self) -> Mapping[str, Any]:
        return _settings(self.config, self.baseline)

    def run(self, out: Path, report: Report) -> None:
        from pipeline.models.prompting import PromptedPolicy, best_of_n_kl

        n, inputs = self.baseline.n, self.inputs()
        policy = PromptedPolicy(
            weights=str(inputs["policy"]),
            best_of=n,
            temperature=self.baseline.temperature,
            reward_model=str(inputs["reward"]),
        )
        policy.write(out, {"kind": self.baseline.kind, "kl_nats_at_most": best_of_n_kl(n)})
        report(Step(1, 1))


@dataclass(frozen=True)
class Instructed(Stage):
    """Fine-tune the base on tasks written as instructions."""

    config: ExperimentConfig
    folder: Path
    baseline: InstructionTuned
    about = "baseline: fine-tuning on tasks as instructions"

    @property
    def name(self) -> str:
        return self.baseline.name

    def inputs(self) -> Mapping[str, Source]:
        base = model_source(self.config.model)
        return {"base": base, **named_inputs(self.baseline, "baseline")}

    def settings(self) -> Mapping[str, Any]:
        sft = (self.baseline.sft or self.config.sft).model_dump(mode="json")
        return {**_settings(self.config, self.baseline), "sft": sft}

    def run(self, out: Path, report: Report) -> None:
        from pipeline.steps.instructions import tune

        seed_process(self.config.seed, self.config.threads)
        tune(
            self.baseline,
            self.baseline.sft or self.config.sft,
            base=model_source(self.config.model),
            sampling=self.config.evaluation.sampling,
            out=out,
            seed=self.config.seed,
            report=report,
        )


def _last_reward_model(config: ExperimentConfig, folder: Path) -> Path:
    return folder / in_round("reward", config.rounds) / "model"


def _settings(
    config: ExperimentConfig, baseline: PromptedBase | BestOfN | InstructionTuned
) -> dict[str, Any]:
    return {
        "seed": config.seed,
        "threads": config.threads,
        "baseline": without_external_names(baseline),
        "sampling": config.evaluation.sampling.model_dump(mode="json"),
    }
