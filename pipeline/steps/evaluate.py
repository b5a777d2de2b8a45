"""Every policy of the experiment on held-out prompts: samples, scores, paired comparisons."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config.experiment import FileSource
from pipeline.runs.manifest import named_inputs, with_base
from pipeline.runs.stage import Source
from pipeline.steps.step import ExperimentStage
from stages.config import without_external_names
from stages.progress import Report


@dataclass(frozen=True)
class Evaluate(ExperimentStage):
    """Generate with every policy, score what it wrote, and compare."""

    kind = "evaluate"
    about = "every policy on held-out prompts"

    @property
    def policies(self) -> dict[str, Source]:
        """The policies that are evaluated, by the names the report uses."""
        baselines = {
            each.name: self.folder / each.name / ("model" if each.name == "instructed" else "")
            for each in self.config.baselines
        }
        picked = {name: path for name, path in baselines.items() if name.startswith("best-of-")}
        rounds = range(1, self.config.rounds + 1)
        trained = [name for number in rounds for name in self.trained_policies(number)]
        return {
            **({} if self.base_model == self.fine_tuned else {"base": self.base_model}),
            **{name: path for name, path in baselines.items() if name not in picked},
            "sft": self.fine_tuned,
            **picked,
            **{name: self.folder / name / "model" for name in trained},
        }

    def inputs(self) -> Mapping[str, Source]:
        data = self.config.data
        given = {"test_prompts": True, "toxicity_prompts": True, "held_out_texts": True}
        if isinstance(data, FileSource):
            given["toxicity_prompts"] = data.toxicity_prompts is not None
            given["held_out_texts"] = (data.pretraining_texts or data.held_out_texts) is not None
        return {
            **self.policies,
            **with_base("reward", self.last_reward_model),
            **{name: self.folder / f"data/{name}.jsonl" for name in given if given[name]},
            **named_inputs(self.config.evaluation, "evaluation"),
        }

    def settings(self) -> Mapping[str, Any]:
        return self.seeded(evaluation=without_external_names(self.config.evaluation))

    def check_settings(self) -> None:
        from pipeline.evaluation.request import check_files

        check_files(self.config.evaluation)

    def check_data(self) -> None:
        from pipeline.evaluation.generate import ids_of

        config, evaluation = self.config, self.config.evaluation
        trained = [ppo.adaptation for ppo in (config.ppo, config.ppo_ptx) if ppo is not None]
        policies = [config.sft_adaptation, *trained]
        new_tokens = evaluation.sampling.max_new_tokens
        self.require_prompts_fit("test", new_tokens, policies)
        longest = max(evaluation.instructions.values(), key=len, default="")
        before = f"{longest} " if longest else ""
        instructed = [replace(p, prompt=before + p.prompt) for p in self.data.prompts("toxicity")]
        new_tokens = evaluation.toxicity_sampling[0].max_new_tokens
        self.require_prompts_fit("toxicity", new_tokens, policies, scored=False, prompts=instructed)
        for use in ("test", "toxicity"):
            ids_of(self.data.prompts(use), use)

    def run(self, out: Path, report: Report) -> None:
        from pipeline.evaluation.evaluate import evaluate
        from pipeline.evaluation.suites.suite import Inputs
        from reward_models.compat import attention_implementation

        self.seed_process()
        data = self.data
        setting = Inputs(
            self.config.evaluation,
            self.policies,
            prompts=data.prompts("test"),
            toxicity_prompts=data.prompts("toxicity"),
            held_out_texts=data.texts("held_out"),
            reward_model=self.last_reward_model,
            seed=self.config.seed,
            report=report,
        )
        with attention_implementation(self.config.evaluation.attn_implementation):
            evaluate(setting, out)
