"""The baselines that an experiment asks for, a stage each; nothing is trained on them.

A base behind a few demonstrations, the best of n answers, and the base fine-tuned on tasks written
as instructions (`instructions.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_never

from pipeline.config.baselines import Baseline, BestOfN, InstructionTuned, PromptedBase
from pipeline.config.experiment import ExperimentConfig
from pipeline.runs.manifest import named_inputs
from pipeline.runs.stage import Source, Stage
from pipeline.steps.step import ExperimentStage
from stages.config import without_external_names
from stages.progress import Report, Step
from stages.sft.config import SFTConfig


def baseline_stages(config: ExperimentConfig, folder: Path) -> list[Stage]:
    """Return a stage for each baseline, in the config's order."""
    stages: list[Stage] = []
    for baseline in config.baselines:
        match baseline:
            case PromptedBase():
                stages.append(Prompted(config, folder, baseline=baseline))
            case BestOfN():
                stages.append(Best(config, folder, baseline=baseline))
            case InstructionTuned():
                stages.append(Instructed(config, folder, baseline=baseline))
            case _:
                assert_never(baseline)
    return stages


@dataclass(frozen=True)
class _BaselineStage(ExperimentStage):
    baseline: Baseline = field(kw_only=True)

    @property
    def name(self) -> str:
        return self.baseline.name

    def settings(self) -> Mapping[str, Any]:
        return self.seeded(
            baseline=without_external_names(self.baseline),
            sampling=self.config.evaluation.sampling.model_dump(mode="json"),
            precision=self.config.evaluation.precision.model_dump(mode="json"),
        )


@dataclass(frozen=True)
class Prompted(_BaselineStage):
    """Choose the demonstrations that stand before every prompt of the base."""

    baseline: PromptedBase = field(kw_only=True)
    about = "baseline: few-shot prefix for the base"

    def inputs(self) -> Mapping[str, Source]:
        return {
            "base": self.base_model,
            "reward": self.last_reward_model,
            "demonstrations": self.folder / "data/demonstrations.jsonl",
            "prompts": self.folder / "data/validation_prompts.jsonl",
        }

    def run(self, out: Path, report: Report) -> None:
        from pipeline.models.prompting import choose_prefix
        from stages.precision import inference_precision

        self.seed_process()
        data = self.data
        with inference_precision(self.config.evaluation.precision):
            choose_prefix(
                self.baseline,
                base=self.base_model,
                reward_model=self.last_reward_model,
                demonstrations=data.demonstrations(),
                prompts=data.prompts("validation"),
                test_prompts=data.prompts("test"),
                sampling=self.config.evaluation.sampling,
                out=out,
                seed=self.config.seed,
                report=report,
            )


@dataclass(frozen=True)
class Best(_BaselineStage):
    """Write down which policy answers n times, and which reward model picks.

    The evaluation samples.
    """

    baseline: BestOfN = field(kw_only=True)

    @property
    def about(self) -> str:
        return f"baseline: best of {self.baseline.n} by the reward model"

    def inputs(self) -> Mapping[str, Source]:
        base = self.baseline.policy == "base"
        policy = self.base_model if base else self.fine_tuned
        return {"policy": policy, "reward": self.last_reward_model}

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
class Instructed(_BaselineStage):
    """Fine-tune the base on tasks written as instructions."""

    baseline: InstructionTuned = field(kw_only=True)
    about = "baseline: fine-tuning on tasks as instructions"

    @property
    def sft(self) -> SFTConfig:
        """The settings of the fine-tuning: its own, or those of stage one."""
        chosen = self.baseline.sft or self.config.sft
        assert chosen is not None
        return chosen

    def inputs(self) -> Mapping[str, Source]:
        return {"base": self.base_model, **named_inputs(self.baseline, "baseline")}

    def settings(self) -> Mapping[str, Any]:
        return {**super().settings(), "sft": self.sft.model_dump(mode="json")}

    def run(self, out: Path, report: Report) -> None:
        from pipeline.steps.instructions import tune
        from stages.precision import inference_precision

        self.seed_process()
        with inference_precision(self.sft.precision):
            tune(
                self.baseline,
                self.sft,
                base=self.base_model,
                sampling=self.config.evaluation.sampling,
                out=out,
                seed=self.config.seed,
                report=report,
            )
