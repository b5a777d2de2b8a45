"""Stage three: PPO against the reward model, without or with the pretraining mix (PPO-ptx)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.config.experiment import ExperimentConfig
from pipeline.runs.manifest import named_inputs
from pipeline.runs.rounds import in_round
from pipeline.runs.stage import Source, Stage, seed_process
from pipeline.steps.data import DataFolder
from pipeline.steps.label import labels_until, read_labels
from pipeline.steps.policies import ppo_start, require_positions, require_prompts_fit
from stages.config import without_external_names
from stages.ppo.config import PPOConfig
from stages.progress import Report


@dataclass(frozen=True)
class Ppo(Stage):
    """Train a policy against the reward model of its round."""

    config: ExperimentConfig
    folder: Path
    kind: Literal["ppo", "ppo-ptx"]
    round: int = 1
    work = "training"

    @property
    def name(self) -> str:
        return in_round(self.kind, self.round)

    @property
    def about(self) -> str:
        about = "PPO" if self.ppo.pretraining is None else "PPO with pretraining mix"
        return about if self.round == 1 else f"round {self.round}: {about}"

    @property
    def ppo(self) -> PPOConfig:
        """The settings of this kind of PPO."""
        chosen = self.config.ppo if self.kind == "ppo" else self.config.ppo_ptx
        assert chosen is not None
        return chosen

    @property
    def reward_model(self) -> Path:
        """The reward model of this round."""
        return self.folder / in_round("reward", self.round) / "model"

    def inputs(self) -> Mapping[str, Source]:
        data = self.folder / "data"
        inputs: dict[str, Source] = {
            "policy": ppo_start(self.config, self.folder),
            "reward": self.reward_model,
            "prompts": data / "ppo_prompts.jsonl",
        }
        if self.ppo.pretraining is not None:
            inputs["texts"] = data / "pretraining_texts.jsonl"
        inputs |= named_inputs(self.ppo, self.kind)
        if self._validates:
            inputs["validation"] = data / "validation_prompts.jsonl"
        return inputs

    def settings(self) -> Mapping[str, Any]:
        return {
            "seed": self.config.seed,
            "threads": self.config.threads,
            "ppo": without_external_names(self.ppo),
        }

    def check_data(self) -> None:
        ppo, start = self.ppo, self.config.ppo_init or self.config.sft
        if ppo.pretraining is not None:
            key = f"{self.kind.replace('-', '_')}.pretraining.tokens_per_example"
            require_positions(self.config, self.folder, ppo.pretraining.tokens_per_example, key)
        policies = [start.adaptation, ppo.adaptation]
        for use in ("ppo", "validation") if self._validates else ("ppo",):
            new_tokens = ppo.sampling.max_new_tokens
            require_prompts_fit(self.config, self.folder, use, new_tokens, policies)

    def run(self, out: Path, report: Report) -> None:
        from pipeline.steps.gold_reward import gold_of
        from stages.models import load_tokenizer
        from stages.ppo.train import train_ppo
        from stages.reward.held_out import held_out_prompts
        from stages.reward.train import within_positions

        seed_process(self.config.seed, self.config.threads)
        seed, policy = self.config.seed, ppo_start(self.config, self.folder)
        data = DataFolder(self.folder / "data")
        validation = data.prompts("validation")
        # Rankings that the reward model did not learn from check it before PPO starts.
        held_out = held_out_prompts(
            within_positions(self.config.reward, self.reward_model),
            load_tokenizer(policy),
            *read_labels(labels_until(self.folder, self.round)),
            seed,
        )
        mixes = self.ppo.pretraining is not None
        train_ppo(
            self.ppo,
            policy=policy,
            reward_model=self.reward_model,
            prompts=data.prompts("ppo"),
            pretraining=data.folder / "pretraining_texts.jsonl" if mixes else None,
            validation=validation if self.ppo.validation is not None else (),
            gold=gold_of(self.ppo.overoptimization, validation, policy, self.ppo.sampling, seed),
            held_out=held_out,
            out=out,
            seed=seed,
            report=report,
        )

    @property
    def _validates(self) -> bool:
        return self.ppo.validation is not None or self.ppo.overoptimization is not None
