"""The suites that policies can be judged by, each in three steps with files between.

    SAID     what policies say (or find likely), as rows of samples.jsonl; [] where its inputs are
             not given. A row's `suite` begins with the name it has here. Several suites may read
             the same rows.
    scorers  who judges those rows
    tables   what the scored rows come to; reads nothing but rows, so that `rlhf score` and
             `rlhf report` do it again without a model

To add a suite, write its functions in a file of its own, name it in `config.SuiteName`, and put it
here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.config.evaluation import EvaluationConfig, SuiteName
from pipeline.evaluation.generate import test_answers, toxicity_answers
from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.samples.tables import Table
from pipeline.evaluation.scorers.scorer import Scorer
from pipeline.evaluation.suites.benchmarks import (
    bias_rows,
    bias_suite_tables,
    tax_notes,
    tax_rows,
    tax_suite_tables,
    truthfulness_rows,
    truthfulness_tables,
)
from pipeline.evaluation.suites.hallucination import (
    hallucination_notes,
    hallucination_scorers,
    hallucination_suite_tables,
)
from pipeline.evaluation.suites.preference import (
    preference_notes,
    preference_scorers,
    preference_tables,
)
from pipeline.evaluation.suites.pretraining_loss import pretraining_tables, text_losses
from pipeline.evaluation.suites.responses import response_suite_tables
from pipeline.evaluation.suites.suite import Inputs
from pipeline.evaluation.suites.toxicity import toxicity_scorers, toxicity_suite_tables


@dataclass(frozen=True, slots=True)
class Said:
    """Rows of policies; `needs` is what was missing where there are none."""

    needs: str
    rows: Callable[[Inputs], list[Completion]]


def _nobody(_: Inputs) -> list[Scorer]:
    return []


def _nothing(_: Sequence[Completion], __: EvaluationConfig) -> list[str]:
    return []


@dataclass(frozen=True, slots=True)
class Suite:
    """One thing to be judged by: whose rows it reads, who scores them, what they come to."""

    said: str
    tables: Callable[[Sequence[Completion], Sequence[str], EvaluationConfig], list[Table]]
    scorers: Callable[[Inputs], list[Scorer]] = _nobody
    notes: Callable[[Sequence[Completion], EvaluationConfig], list[str]] = _nothing


SAID: Mapping[str, Said] = {
    "test": Said("test prompts", test_answers),
    "toxicity": Said("toxicity prompts", toxicity_answers),
    "truthfulness": Said("evaluation.truthfulqa", truthfulness_rows),
    "bias": Said("evaluation.bias", bias_rows),
    "tax": Said("evaluation.tax", tax_rows),
    "pretraining": Said("held-out pretraining texts", text_losses),
}

SUITES: Mapping[SuiteName, Suite] = {
    "preference": Suite("test", preference_tables, preference_scorers, preference_notes),
    "hallucination": Suite(
        "test", hallucination_suite_tables, hallucination_scorers, hallucination_notes
    ),
    "toxicity": Suite("toxicity", toxicity_suite_tables, toxicity_scorers),
    "truthfulness": Suite("truthfulness", truthfulness_tables),
    "bias": Suite("bias", bias_suite_tables),
    "tax": Suite("tax", tax_suite_tables, notes=tax_notes),
    "responses": Suite("test", response_suite_tables, toxicity_scorers),
    "pretraining": Suite("pretraining", pretraining_tables),
}
