"""The base of an experiment's stages: its config, the run's folder, and what lies in it."""

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.experiment import ExperimentConfig, FileSource
from pipeline.runs.manifest import model_source
from pipeline.runs.run import is_gone
from pipeline.runs.stage import Source, Stage, in_round
from reward_models.records import Demonstration, Prompt, read_records
from reward_models.row_files import read_jsonl
from stages.adapters.config import Adaptation


class DataFolder:
    """Reads the data sets of a run. A set that the experiment does not have is empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def demonstrations(self, name: str = "demonstrations") -> list[Demonstration]:
        """Demonstrations to train on, or those named `validation`."""
        path = self.folder / f"{name}.jsonl"
        return read_records(path, Demonstration) if path.is_file() else []

    def prompts(self, use: str) -> list[Prompt]:
        """Prompts for `ranking`, `ppo`, `validation`, `test` or `toxicity`."""
        path = self.folder / f"{use}_prompts.jsonl"
        return read_records(path, Prompt) if path.is_file() else []

    def texts(self, use: str) -> list[str]:
        """Texts of the base model's kind: `pretraining` or `held_out`."""
        path = self.folder / f"{use}_texts.jsonl"
        return [str(row["text"]) for _, row in read_jsonl(path)] if path.is_file() else []


def has_demonstrations(config: ExperimentConfig) -> bool:
    """Return true unless the experiment's files lack demonstrations."""
    return not isinstance(config.data, FileSource) or config.data.demonstrations is not None


@dataclass(frozen=True)
class ExperimentStage(Stage):
    """A stage of an experiment, in the run's folder; in later rounds the number ends its name."""

    config: ExperimentConfig
    folder: Path
    round: int = 1
    kind = ""

    @property
    def name(self) -> str:
        """The name of the stage and of its folder."""
        return in_round(self.kind, self.round)

    @property
    def data(self) -> DataFolder:
        """The data sets of the run."""
        return DataFolder(self.folder / "data")

    @property
    def base_model(self) -> Source:
        """The model that the experiment begins with."""
        return model_source(self.config.model)

    @property
    def sft_model(self) -> Source:
        """The model that `sft` means: stage one's, by validation loss, or the config's policy."""
        policy = self.config.policy
        return self.folder / "sft/model" if policy is None else model_source(policy)

    @property
    def fine_tuned(self) -> Source:
        """The policy that is called SFT: the epoch chosen by reward, or by validation loss."""
        if self.config.sft is None:
            return self.sft_model
        by_reward = self.config.sft_choice == "reward"
        return self.folder / ("select" if by_reward else "sft") / "model"

    def reward_model_of(self, number: int) -> Source:
        """Return the reward model of a round, or the one that the config names."""
        other = self.config.reward_model
        own = self.folder / in_round("reward", number) / "model"
        return own if other is None else model_source(other)

    @property
    def last_reward_model(self) -> Source:
        """The reward model of the last round."""
        return self.reward_model_of(self.config.rounds)

    def trained_policies(self, number: int) -> list[str]:
        """Return the names of the policies that a round trains, the last one the best."""
        kinds = (("ppo", self.config.ppo), ("ppo-ptx", self.config.ppo_ptx))
        return [in_round(name, number) for name, settings in kinds if settings is not None]

    def seeded(self, **settings: object) -> Mapping[str, Any]:
        """Return the settings that decide a result, seed and threads among them."""
        return {"seed": self.config.seed, "threads": self.config.threads, **settings}

    def seed_process(self) -> None:
        """Seed every global generator and bound the threads, before a stage computes.

        Without a GPU the process also keeps the memory that a forward pass frees.
        """
        import numpy
        import torch

        from stages.distributed.memory import keep_freed_memory

        if not torch.cuda.is_available():
            keep_freed_memory()
        if self.config.threads is not None:
            # Ranks that share a machine share its threads: more than cores wait for each other.
            ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by every launcher
            torch.set_num_threads(max(1, self.config.threads // ranks))
        random.seed(self.config.seed)
        numpy.random.seed(self.config.seed)
        torch.manual_seed(self.config.seed)

    def require_prompts_fit(
        self,
        use: str,
        new_tokens: int,
        policies: Sequence[Adaptation],
        *,
        scored: bool = True,
        prompts: Sequence[Prompt] | None = None,
    ) -> None:
        """Raise ValueError where a prompt and its response exceed the positions of a model.

        The models are the base under each adaptation of `policies`, and the reward model where
        responses are `scored`. A stage would otherwise find out when it starts, hours later. Texts
        that stages leave out and count (demonstrations, ranked outputs) are not checked.
        """
        from stages.models import load_tokenizer
        from stages.prompt_lengths import adapted_context_limit, require_fit

        base = self._base_or_tuned()
        limits = [adapted_context_limit(base, adaptation) for adaptation in policies]
        if scored and self.config.reward is not None:
            name = self.config.reward_base
            reward_base = base if name in ("sft", "base") else model_source(name)
            limits.append(adapted_context_limit(reward_base, self.config.reward.adaptation))
        if prompts is None:
            prompts = self.data.prompts(use)
        require_fit(load_tokenizer(base), prompts, new_tokens, limits, f"{use}_prompts")

    def require_positions(self, tokens: int, key: str) -> None:
        """Raise ValueError where a text of so many tokens exceeds the positions of the base."""
        from reward_models.context_limit import context_limit

        context_limit(self._base_or_tuned()).require(tokens, key)

    def _base_or_tuned(self) -> Source:
        """Return the base, or its fine-tuning where a run was moved and the base was not."""
        tuned = self.folder / "sft/model"
        return tuned if is_gone(self.base_model) and tuned.is_dir() else self.base_model
