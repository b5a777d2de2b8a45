"""The stages of the baselines that an experiment asks for, and where their policies lie."""

from pathlib import Path
from typing import Any, assert_never

from pipeline.baselines import work
from pipeline.baselines.config import BestOfN, InstructionTuned, PromptedBase
from pipeline.config import ExperimentConfig
from pipeline.named_inputs import named_inputs
from pipeline.rounds import named
from pipeline.run import Source, Stage
from pipeline.work import settled
from stages.config_base import without_names


def compared_baselines(config: ExperimentConfig, run: Path) -> dict[str, Source]:
    """The policies by name: those asked first, then those whose answers are picked among SFT's."""
    found: dict[str, Source] = {}
    for chosen in config.baselines:
        tuned = isinstance(chosen, InstructionTuned)
        found[chosen.name] = run / chosen.name / ("model" if tuned else "")
    return found


def baseline_stages(config: ExperimentConfig, run: Path, base: Source, sft: Source) -> list[Stage]:
    """A stage for each; they read what earlier stages left and nothing is trained on them."""
    reward_model, data = run / named("reward", config.rounds) / "model", run / "data"
    stages = []
    for chosen in config.baselines:
        settings: dict[str, Any] = {
            "seed": config.seed,
            "threads": config.threads,
            "baseline": without_names(chosen),
            "sampling": config.evaluation.sampling.model_dump(mode="json"),
        }
        match chosen:
            case PromptedBase():
                inputs = {"base": base, "reward": reward_model}
                inputs["demonstrations"] = data / "demonstrations.jsonl"
                inputs["prompts"] = data / "validation_prompts.jsonl"
                about = "baseline: few-shot prefix for the base"
                todo = work.prompted(config, chosen, base, reward_model, data)
            case BestOfN():
                policy = sft if chosen.policy == "sft" else base
                inputs = {"policy": policy, "reward": reward_model}
                about = f"baseline: best of {chosen.n} by the reward model"
                todo = work.best_of_n(chosen, policy, reward_model)
            case InstructionTuned():
                settings["sft"] = (chosen.sft or config.sft).model_dump(mode="json")
                inputs = {"base": base, **named_inputs(chosen, "baseline")}
                about = "baseline: fine-tuning on tasks as instructions"
                todo = work.instructed(config, chosen, base)
            case _:
                assert_never(chosen)
        name = chosen.name
        stages.append(Stage(name, about, settings, inputs, settled(config, todo)))
    return stages
