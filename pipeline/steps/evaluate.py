"""Every policy of the experiment on held-out prompts: samples, scores, paired comparisons."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config.experiment import ExperimentConfig, FileSource
from pipeline.runs.manifest import named_inputs
from pipeline.runs.rounds import in_round
from pipeline.runs.stage import Source, Stage, seed_process
from pipeline.steps.data import DataFolder
from pipeline.steps.policies import compared_policies, require_prompts_fit
from stages.config import without_external_names
from stages.progress import Report


@dataclass(frozen=True)
class Evaluate(Stage):
    """Generate with every policy, score what it wrote, and compare."""

    config: ExperimentConfig
    folder: Path
    name = "evaluate"
    about = "every policy on held-out prompts"

    @property
    def reward_model(self) -> Path:
        """The reward model of the last round."""
        return self.folder / in_round("reward", self.config.rounds) / "model"

    def inputs(self) -> Mapping[str, Source]:
        data = self.config.data
        given = {"test_prompts": True, "toxicity_prompts": True, "held_out_texts": True}
        if isinstance(data, FileSource):
            given["toxicity_prompts"] = data.toxicity_prompts is not None
            given["held_out_texts"] = (data.pretraining_texts or data.held_out_texts) is not None
        return {
            **compared_policies(self.config, self.folder),
            "reward": self.reward_model,
            **{name: self.folder / f"data/{name}.jsonl" for name in given if given[name]},
            **named_inputs(self.config.evaluation, "evaluation"),
        }

    def settings(self) -> Mapping[str, Any]:
        return {
            "seed": self.config.seed,
            "threads": self.config.threads,
            "evaluation": without_external_names(self.config.evaluation),
        }

    def check_settings(self) -> None:
        from pipeline.evaluation.request import check_files

        check_files(self.config.evaluation)

    def check_data(self) -> None:
        from pipeline.evaluation.generate import ids_of

        config, evaluation = self.config, self.config.evaluation
        data = DataFolder(self.folder / "data")
        trained = [ppo.adaptation for ppo in (config.ppo, config.ppo_ptx) if ppo is not None]
        policies = [config.sft.adaptation, *trained]
        new_tokens = evaluation.sampling.max_new_tokens
        require_prompts_fit(config, self.folder, "test", new_tokens, policies)
        longest = max(evaluation.instructions.values(), key=len, default="")
        before = f"{longest} " if longest else ""
        instructed = [replace(p, prompt=before + p.prompt) for p in data.prompts("toxicity")]
        new_tokens = evaluation.toxicity_sampling[0].max_new_tokens
        require_prompts_fit(
            config, self.folder, "toxicity", new_tokens, policies, scored=False, prompts=instructed
        )
        for use in ("test", "toxicity"):
            ids_of(data.prompts(use), use)

    def run(self, out: Path, report: Report) -> None:
        from pipeline.evaluation.evaluate import evaluate
        from pipeline.evaluation.suites.suite import Inputs

        seed_process(self.config.seed, self.config.threads)
        data = DataFolder(self.folder / "data")
        setting = Inputs(
            self.config.evaluation,
            compared_policies(self.config, self.folder),
            prompts=data.prompts("test"),
            toxicity_prompts=data.prompts("toxicity"),
            held_out_texts=data.texts("held_out"),
            reward_model=self.reward_model,
            seed=self.config.seed,
            report=report,
        )
        evaluate(setting, out)
