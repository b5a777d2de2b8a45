"""Before the first stage trains: do the prompts of all stages fit the models that will read them?

A prompt that is too long would otherwise be noticed when its stage begins, hours later. Texts that
stages leave out and count (demonstrations, ranked outputs) are no matter for this. Prompts that the
evaluation could not tell apart are refused here too.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from pipeline.config.evaluation import EvaluationConfig
from pipeline.config.experiment import ExperimentConfig
from pipeline.runs.manifest import Source, model_source
from pipeline.runs.run import is_gone
from pipeline.steps.data import DataFolder
from reward_models.context_limit import ContextLimit, context_limit
from reward_models.records import Prompt
from stages.models import load_tokenizer
from stages.ppo.config import PPOConfig
from stages.prompt_lengths import adapted_context_limit, require_fit

READING = {"sft", "sample", "select", "ppo-init", "ppo", "ppo-ptx", "evaluate"}


def check_lengths(config: ExperimentConfig, datasets: Path, stages: Collection[str]) -> None:
    """Raise ValueError, in one line, for the first of `stages` whose prompts do not fit."""
    if READING.isdisjoint(stages):
        return
    from pipeline.evaluation.generate import ids_of

    base, data = _start(config, datasets.parent), DataFolder(datasets)
    tokenizer = load_tokenizer(base)
    _check_mixes(config, context_limit(base), stages)
    for what, prompts, new_tokens, rooms in _asked(config, base, data, stages):
        require_fit(tokenizer, prompts, new_tokens, rooms, what)
    for use in ("test", "toxicity") if "evaluate" in stages else ():
        ids_of(data.prompts(use), use)


def _start(config: ExperimentConfig, run: Path) -> Source:
    """The base, or what was fine-tuned from it where the run was moved and the base was not."""
    base, tuned = model_source(config.model), run / "sft/model"
    return tuned if is_gone(base) and tuned.is_dir() else base


def _asked(
    config: ExperimentConfig, base: Source, data: DataFolder, stages: Collection[str]
) -> Iterator[tuple[str, list[Prompt], int, list[ContextLimit]]]:
    """The prompts of each stage, the length of their responses, and the models of both."""
    tuned = adapted_context_limit(base, config.sft.adaptation)
    judge = base if config.reward_base in ("sft", "base") else model_source(config.reward_base)
    reward = adapted_context_limit(judge, config.reward.adaptation)
    if "sample" in stages:
        longest = max(setting.max_new_tokens for setting in config.sampling.settings)
        yield "ranking_prompts", data.prompts("ranking"), longest, [tuned]
    if "select" in stages:
        longest = config.sft.selection.max_new_tokens
        yield "validation_prompts", data.prompts("validation"), longest, [tuned, reward]
    for name, ppo in (("ppo", config.ppo), ("ppo-ptx", config.ppo_ptx)):
        if ppo is not None and name in stages:
            rooms = [
                adapted_context_limit(base, (config.ppo_init or config.sft).adaptation),
                reward,
            ]
            rooms.append(adapted_context_limit(base, ppo.adaptation))
            for use in ("ppo", "validation") if _validates(ppo) else ("ppo",):
                yield f"{use}_prompts", data.prompts(use), ppo.sampling.max_new_tokens, rooms
    if "evaluate" in stages:
        trained = [ppo for ppo in (config.ppo, config.ppo_ptx) if ppo is not None]
        evaluated = [
            tuned,
            reward,
            *(adapted_context_limit(base, ppo.adaptation) for ppo in trained),
        ]
        tokens = config.evaluation.sampling.max_new_tokens
        yield "test_prompts", data.prompts("test"), tokens, evaluated
        toxicity = _instructed(config.evaluation, data.prompts("toxicity"))
        tokens = config.evaluation.toxicity_sampling[0].max_new_tokens
        yield "toxicity_prompts", toxicity, tokens, evaluated[:1] + evaluated[2:]


def _validates(ppo: PPOConfig) -> bool:
    return ppo.validation is not None or ppo.gold is not None


def _instructed(config: EvaluationConfig, prompts: list[Prompt]) -> list[Prompt]:
    """The prompts behind the longest instruction."""
    longest = max(config.instructions.values(), key=len, default="")
    before = f"{longest}{config.separator}" if longest else ""
    return [replace(prompt, prompt=before + prompt.prompt) for prompt in prompts]


def _check_mixes(config: ExperimentConfig, room: ContextLimit, stages: Collection[str]) -> None:
    """Examples of pretraining text are as long as a setting says."""
    for name, stage in (
        ("sft", config.sft),
        ("ppo-init", config.ppo_init),
        ("ppo-ptx", config.ppo_ptx),
    ):
        mix = None if stage is None else stage.pretraining
        if mix is not None and name in stages:
            key = f"{name.replace('-', '_')}.pretraining.tokens_per_example"
            room.require(mix.tokens_per_example, key)
