"""The places of an experiment's policies, and the check that prompts fit their positions."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.config.baselines import InstructionTuned
from pipeline.config.experiment import ExperimentConfig
from pipeline.runs.manifest import model_source
from pipeline.runs.rounds import in_round
from pipeline.runs.run import is_gone
from pipeline.runs.stage import Source
from pipeline.steps.data import DataFolder
from reward_models.records import Prompt
from stages.adapters.config import Adaptation


def fine_tuned(config: ExperimentConfig, folder: Path) -> Path:
    """Return the policy that is called SFT: the epoch chosen by reward, or by validation loss."""
    return folder / ("select" if config.sft_choice == "reward" else "sft") / "model"


def ppo_start(config: ExperimentConfig, folder: Path) -> Path:
    """Return the policy that PPO starts from and is held to."""
    separate = config.ppo_init is not None
    return folder / "ppo-init/model" if separate else fine_tuned(config, folder)


def trained_policies(config: ExperimentConfig, number: int) -> list[str]:
    """Return the names of the policies that a round trains, the last one the best."""
    kinds = (("ppo", config.ppo), ("ppo-ptx", config.ppo_ptx))
    return [in_round(name, number) for name, settings in kinds if settings is not None]


def compared_policies(config: ExperimentConfig, folder: Path) -> dict[str, Source]:
    """Return the policies that an experiment evaluates, by the names the report uses."""
    baselines: dict[str, Source] = {
        each.name: folder / each.name / ("model" if isinstance(each, InstructionTuned) else "")
        for each in config.baselines
    }
    best_of_n = {name for name in baselines if name.startswith("best-of-")}
    policies: dict[str, Source] = {"base": model_source(config.model)}
    policies |= {name: source for name, source in baselines.items() if name not in best_of_n}
    policies["sft"] = fine_tuned(config, folder)
    policies |= {name: source for name, source in baselines.items() if name in best_of_n}
    for number in range(1, config.rounds + 1):
        policies |= {name: folder / name / "model" for name in trained_policies(config, number)}
    return policies


def require_prompts_fit(
    config: ExperimentConfig,
    folder: Path,
    use: str,
    new_tokens: int,
    policies: Sequence[Adaptation],
    *,
    scored: bool = True,
    prompts: Sequence[Prompt] | None = None,
) -> None:
    """Raise ValueError where a prompt and its response exceed the positions of a model.

    The models are the base under each adaptation of `policies`, and the reward model where
    responses are `scored`. A stage would otherwise find out when it starts, hours later. Texts that
    stages leave out and count (demonstrations, ranked outputs) are not checked.
    """
    from stages.models import load_tokenizer
    from stages.prompt_lengths import adapted_context_limit, require_fit

    base = _base(config, folder)
    limits = [adapted_context_limit(base, adaptation) for adaptation in policies]
    if scored:
        own = config.reward_base in ("sft", "base")
        reward_base = base if own else model_source(config.reward_base)
        limits.append(adapted_context_limit(reward_base, config.reward.adaptation))
    if prompts is None:
        prompts = DataFolder(folder / "data").prompts(use)
    require_fit(load_tokenizer(base), prompts, new_tokens, limits, f"{use}_prompts")


def require_positions(config: ExperimentConfig, folder: Path, tokens: int, key: str) -> None:
    """Raise ValueError where a text of so many tokens exceeds the positions of the base."""
    from reward_models.context_limit import context_limit

    context_limit(_base(config, folder)).require(tokens, key)


def _base(config: ExperimentConfig, folder: Path) -> Source:
    """Return the base, or its fine-tuning where a run was moved and the base was not."""
    base, tuned = model_source(config.model), folder / "sft/model"
    return tuned if is_gone(base) and tuned.is_dir() else base
