"""What each stage of a run does: read inputs from the run's folder, call the stage, write there.

Heavy libraries are imported inside, so that a plan can be made and checked without them.
"""

import os
import random
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path

from pipeline.config.experiment import ExperimentConfig
from pipeline.steps.data import DataFolder, make_data
from reward_models.atomic_files import write_jsonl
from reward_models.records import Ranking, RankingTask, read_records
from stages.ppo.config import PPOConfig
from stages.progress import Report, Step
from stages.sft.config import SFTConfig

PRETRAINING_TEXTS = "pretraining_texts.jsonl"

Source = Path | str
Work = Callable[[Path, Report], None]


def settled(config: ExperimentConfig, work: Work) -> Work:
    """The same work, begun with the experiment's seed and number of threads.

    Where there is no GPU, the process keeps the memory that passes give back.
    """

    @wraps(work)
    def begin(out: Path, report: Report) -> None:
        import numpy
        import torch

        from stages.distributed.memory import keep_freed_memory

        if not torch.cuda.is_available():
            keep_freed_memory()
        if config.threads is not None:
            # Ranks that share a machine share its threads: more than cores wait for each other.
            torch.set_num_threads(max(1, config.threads // _ranks_here()))
        random.seed(config.seed)
        numpy.random.seed(config.seed)
        torch.manual_seed(config.seed)
        work(out, report)

    return begin


def _ranks_here() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # what every launcher sets


def data(config: ExperimentConfig) -> Work:
    """Write every data set."""

    def work(out: Path, _: Report) -> None:
        make_data(config, out)

    return work


def sft(config: ExperimentConfig, chosen: SFTConfig, base: Source, datasets: Path) -> Work:
    """Fine-tune on the demonstrations; the epoch is chosen by validation loss."""

    def work(out: Path, report: Report) -> None:
        from stages.sft.train import train_sft

        found = DataFolder(datasets)
        train_sft(
            chosen,
            base=base,
            demonstrations=found.demonstrations(),
            validation=found.demonstrations("validation"),
            reward_model=None,
            selection_prompts=(),
            out=out,
            seed=config.seed,
            report=report,
            pretraining=None if chosen.pretraining is None else datasets / PRETRAINING_TEXTS,
        )

    return work


def select(config: ExperimentConfig, trained: Path, reward_model: Path, datasets: Path) -> Work:
    """Choose among the epochs of SFT again, now by the reward model's score."""

    def work(out: Path, report: Report) -> None:
        from stages.sft.selection import choose_epoch

        choose_epoch(
            trained,
            reward_model=reward_model,
            selection_prompts=DataFolder(datasets).prompts("validation"),
            sampling=config.sft.selection,
            out=out,
            seed=config.seed,
            report=report,
        )

    return work


def sample(
    config: ExperimentConfig, policies: dict[str, Source], datasets: Path, number: int
) -> Work:
    """Draw K responses to each ranking prompt and write them as the tasks of round `number`."""

    def work(out: Path, report: Report) -> None:
        from pipeline.steps.sample import require_prompts_fit, sample_tasks

        prompts = DataFolder(datasets).prompts("ranking")
        require_prompts_fit(prompts, policies, config.sampling.settings)
        tasks = sample_tasks(
            prompts,
            policies,
            responses=config.sampling.responses,
            settings=config.sampling.settings,
            seed=config.seed,
            report=report,
            prefix="" if number == 1 else f"round-{number}-",
        )
        write_jsonl(out / "tasks.jsonl", (task.to_json() for task in tasks))

    return work


def reward(
    config: ExperimentConfig, base: Source, labelled: Sequence[Path], datasets: Path
) -> Work:
    """Train the reward model on the rankings of all rounds so far, a folder each.

    With folds, others are trained that never saw a group of the annotators, or of the prompts.
    """

    def work(out: Path, report: Report) -> None:
        from stages.reward.folds import write_folds
        from stages.reward.train import train_reward, within_positions

        tasks, rankings = _ranked(labelled)
        train_reward(
            config.reward,
            base=base,
            tasks=tasks,
            rankings=rankings,
            demonstrations=DataFolder(datasets).demonstrations(),
            out=out,
            seed=config.seed,
            report=report,
        )
        write_folds(
            within_positions(config.reward, base),
            base=base,
            tasks=tasks,
            rankings=rankings,
            out=out,
            seed=config.seed,
            report=report,
        )

    return work


def ppo(
    config: ExperimentConfig,
    chosen: PPOConfig,
    policy: Path,
    reward_model: Path,
    labelled: Sequence[Path],
    datasets: Path,
) -> Work:
    """Train the policy against the reward model, with the pretraining mix if `chosen` has one.

    The reward model is checked by those of its rankings, in the folders `labelled`, that it did not
    learn from.
    """

    def work(out: Path, report: Report) -> None:
        from pipeline.steps.gold_reward import gold_of
        from stages.models import load_tokenizer
        from stages.ppo.trainer import train_ppo
        from stages.reward.held_out import held_out_prompts
        from stages.reward.train import within_positions

        found = DataFolder(datasets)
        mix, rule = chosen.pretraining, chosen.validation
        train_ppo(
            chosen,
            policy=policy,
            reward_model=reward_model,
            prompts=found.prompts("ppo"),
            pretraining=found.folder / "pretraining_texts.jsonl" if mix is not None else None,
            validation=found.prompts("validation") if rule is not None else (),
            gold=gold_of(
                chosen.gold, found.prompts("validation"), policy, chosen.sampling, config.seed
            ),
            held_out=held_out_prompts(
                within_positions(config.reward, reward_model),
                *(load_tokenizer(policy), *_ranked(labelled), config.seed),
            ),
            out=out,
            seed=config.seed,
            report=report,
        )

    return work


def evaluate(
    config: ExperimentConfig, policies: dict[str, Source], reward_model: Path, datasets: Path
) -> Work:
    """Let every policy answer the held-out prompts, and score what it said."""

    def work(out: Path, report: Report) -> None:
        from pipeline.evaluation.evaluate import evaluate
        from pipeline.evaluation.suites.suite import Inputs

        found = DataFolder(datasets)
        setting = Inputs(
            config.evaluation,
            policies,
            prompts=found.prompts("test"),
            toxicity_prompts=found.prompts("toxicity"),
            held_out_texts=found.texts("held_out"),
            reward_model=reward_model,
            seed=config.seed,
            report=report,
        )
        evaluate(setting, out)

    return work


def report(run: Path) -> Work:
    """Write the page about the run."""

    def work(out: Path, said: Report) -> None:
        from pipeline.report.build import write_report

        write_report(run, out / "report.html")
        said(Step(1, 1))

    return work


def _ranked(labelled: Sequence[Path]) -> tuple[list[RankingTask], list[Ranking]]:
    """The tasks and rankings of all these folders together."""
    tasks = [task for each in labelled for task in read_records(each / "tasks.jsonl", RankingTask)]
    rankings = [one for each in labelled for one in read_records(each / "rankings.jsonl", Ranking)]
    return tasks, rankings
