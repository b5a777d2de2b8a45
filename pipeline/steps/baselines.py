"""The stages of the baselines that an experiment asks for, and where their policies lie."""

from pathlib import Path
from typing import Any, assert_never

from pipeline.config.baselines import BestOfN, InstructionTuned, PromptedBase
from pipeline.config.experiment import ExperimentConfig
from pipeline.runs.manifest import named_inputs
from pipeline.runs.run import Stage
from pipeline.steps.data import DataFolder
from pipeline.steps.order import named
from pipeline.steps.work import Source, Work, settled
from stages.config import without_external_names
from stages.progress import Report, Step


def prompted(
    config: ExperimentConfig, chosen: PromptedBase, base: Source, reward_model: Path, data: Path
) -> Work:
    """Choose the demonstrations that the base reads before every prompt."""

    def work(out: Path, report: Report) -> None:
        from pipeline.steps.prefix import choose_prefix

        found = DataFolder(data)
        choose_prefix(
            chosen,
            base=base,
            reward_model=reward_model,
            demonstrations=found.demonstrations(),
            prompts=found.prompts("validation"),
            asked_later=found.prompts("test"),
            sampling=config.evaluation.sampling,
            out=out,
            seed=config.seed,
            report=report,
        )

    return work


def best_of_n(chosen: BestOfN, policy: Source, reward_model: Path) -> Work:
    """Say whose answers are drawn and who picks; the drawing is the evaluation's."""

    def work(out: Path, report: Report) -> None:
        from pipeline.models.speaker import Speaker, best_of_n_kl

        speaker = Speaker(
            weights=str(policy),
            best_of=chosen.n,
            temperature=chosen.temperature,
            reward_model=str(reward_model),
        )
        speaker.write(out, {"kind": chosen.kind, "kl_nats_at_most": best_of_n_kl(chosen.n)})
        report(Step(1, 1))

    return work


def instructed(config: ExperimentConfig, chosen: InstructionTuned, base: Source) -> Work:
    """Fine-tune the base on tasks written as instructions."""

    def work(out: Path, report: Report) -> None:
        from pipeline.steps.instructions import tune

        tune(
            chosen,
            chosen.sft or config.sft,
            base=base,
            sampling=config.evaluation.sampling,
            out=out,
            seed=config.seed,
            report=report,
        )

    return work


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
            "baseline": without_external_names(chosen),
            "sampling": config.evaluation.sampling.model_dump(mode="json"),
        }
        match chosen:
            case PromptedBase():
                inputs = {"base": base, "reward": reward_model}
                inputs["demonstrations"] = data / "demonstrations.jsonl"
                inputs["prompts"] = data / "validation_prompts.jsonl"
                about = "baseline: few-shot prefix for the base"
                todo = prompted(config, chosen, base, reward_model, data)
            case BestOfN():
                policy = sft if chosen.policy == "sft" else base
                inputs = {"policy": policy, "reward": reward_model}
                about = f"baseline: best of {chosen.n} by the reward model"
                todo = best_of_n(chosen, policy, reward_model)
            case InstructionTuned():
                settings["sft"] = (chosen.sft or config.sft).model_dump(mode="json")
                inputs = {"base": base, **named_inputs(chosen, "baseline")}
                about = "baseline: fine-tuning on tasks as instructions"
                todo = instructed(config, chosen, base)
            case _:
                assert_never(chosen)
        name = chosen.name
        stages.append(Stage(name, about, settings, inputs, settled(config, todo)))
    return stages
