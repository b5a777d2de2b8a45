"""What the stages of baselines do. Heavy libraries are imported inside the work itself."""

from pathlib import Path

from pipeline.baselines.config import BestOfN, InstructionTuned, PromptedBase
from pipeline.config import ExperimentConfig
from pipeline.datasets import DataFolder
from pipeline.work import Source, Work
from stages.progress import Report, Step


def prompted(
    config: ExperimentConfig, chosen: PromptedBase, base: Source, reward_model: Path, data: Path
) -> Work:
    """Choose the demonstrations that the base reads before every prompt."""

    def work(out: Path, report: Report) -> None:
        from pipeline.baselines.prefix import choose_prefix

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
        from pipeline.baselines.speaker import Speaker, best_of_n_kl

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
        from pipeline.baselines.instructions import tune

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
