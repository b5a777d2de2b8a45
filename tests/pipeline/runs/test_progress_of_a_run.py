"""Reports of the stages of a whole small run: counts that only rise, work in words."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.config.loading import load_config
from pipeline.runs.display import PlainDisplay
from pipeline.steps.order import run_experiment
from stages.progress import Step

ROOT = Path(__file__).parents[3]
SMALL = [
    "threads=1",
    "sft.epochs=2",
    "reward.annotator_folds=2",
    "reward.prompt_folds=2",
    *(
        f"{stage}.{setting}"
        for stage in ("ppo", "ppo_ptx")
        for setting in ("episodes=32", "episodes_per_rollout=16", "minibatch=8")
    ),
    "ppo.validation={every: 1}",
    "ppo.overoptimization.num_prompts=4",
    "baselines=[{kind: prompted, candidates: 2, prompts: 4}, {kind: best_of_n, n: 2}]",
    "evaluation.resamples=100",
    "evaluation.sign_flips=100",
    "data.sizes={demonstrations: 16, ranking_prompts: 30, ppo_prompts: 32, validation_prompts: 8, "
    "test_prompts: 24, toxicity_prompts: 8, pretraining_texts: 40, held_out_texts: 8}",
]


class Recorder(PlainDisplay):
    """A display that keeps every step of every stage."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[str, list[Step]] = defaultdict(list)

    def step(self, step: Step) -> None:
        self.steps[self.stage].append(step)
        super().step(step)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_in_no_stage_of_a_run_does_the_count_fall_or_the_total_shrink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()

    @contextmanager
    def display(_: Sequence[str]) -> Iterator[Recorder]:
        yield recorder

    monkeypatch.setattr("pipeline.steps.order.display", display)
    run_experiment(load_config(ROOT / "configs/quickstart.yaml", SMALL), tmp_path / "run")
    for stage, steps in recorder.steps.items():
        counted = [step for step in steps if step.total]
        for before, after in pairwise(counted):
            assert before.done <= after.done <= after.total, stage
            assert before.total <= after.total, stage
        assert all(step.done == 0 for step in steps if not step.total), stage
    words = {step.doing.partition(",")[0] for steps in recorder.steps.values() for step in steps}
    assert {"scoring demonstrations", "sampling responses", "validating"} <= words
