"""A suite: one thing that policies are evaluated on, in three steps with files between.

    samples  completions of the policies, or texts with the likelihood they give them; [] where the
             inputs are not given. Several suites may use the same samples.
    scorers  the judges of these samples
    tables   the numbers of the scored samples, from nothing but rows, so that `rlhf score` and
             `rlhf report` compute them again without a model

To add a suite, write it in a file of its own, name it in `pipeline.config.evaluation.SuiteName` and
list it in `pipeline.evaluation.evaluate.SUITES`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.evaluation import EvaluationConfig, SuiteName
from pipeline.evaluation.samples.records import Completion, ScoredRows
from pipeline.evaluation.samples.tables import Table
from pipeline.evaluation.scorers.scorer import Scorer
from reward_models.records import Prompt
from stages.progress import Report, Step, silent

_STEPS = 1000  # of the progress of one part


@dataclass(frozen=True, slots=True)
class Inputs:
    """The policies to evaluate, and their prompts. Without its input a suite has no rows."""

    config: EvaluationConfig
    policies: Mapping[str, str | Path]
    prompts: Sequence[Prompt] = ()
    toxicity_prompts: Sequence[Prompt] = ()
    held_out_texts: Sequence[str] = ()
    reward_model: str | Path | None = None
    seed: int = 0
    report: Report = silent


@dataclass(frozen=True, slots=True)
class Samples:
    """Rows that one suite or several use. A row's `suite`, before a colon, is the name here."""

    name: str
    needs: str  # the input that is missing where there are no rows
    generate: Callable[[Inputs], list[Completion]]
    likelihoods: bool = False  # of models alone, not of baselines such as a prompted model


@dataclass(frozen=True, slots=True)
class Suite:
    """One suite. `tables` and `notes` get all rows, of other suites too."""

    name: SuiteName
    samples: Samples
    tables: Callable[[ScoredRows, Sequence[str], EvaluationConfig], list[Table]]
    scorers: Callable[[Inputs], list[Scorer]] = lambda _: []
    notes: Callable[[ScoredRows, EvaluationConfig], list[str]] = lambda *_: []


def part_of(report: Report, part: int, parts: int) -> Report:
    """Return a report of one part's progress as that of the whole."""

    def report_part(step: Step) -> None:
        if not step.total:
            report(step)
            return
        done = part * _STEPS + _STEPS * step.done // step.total
        report(Step(done, parts * _STEPS, step.metrics, step.doing))

    return report_part
