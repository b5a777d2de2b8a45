"""Properties that move scores without merit: length, not ending, abstaining, repeated answers."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from pipeline.config.evaluation import EvaluationConfig
from pipeline.evaluation.generate import TEST
from pipeline.evaluation.samples.records import Bools, ScoredRows
from pipeline.evaluation.samples.tables import Quantity, Table, tabulate
from pipeline.evaluation.scorers.gold import GOLD
from pipeline.evaluation.scorers.style import PHRASES, abstains, normalised
from pipeline.evaluation.suites.suite import Suite
from pipeline.evaluation.suites.toxicity import toxicity_scorers

SUITE: Final = "responses"


def response_tables(rows: ScoredRows, models: Sequence[str], _: EvaluationConfig) -> list[Table]:
    """Return tokens, EOS rate, refusals, repeated answers and the most frequent answer's share."""
    rows = rows.of_suite(TEST.name)
    refusal_S = np.array([float(abstains(text)) for text in rows.fields["completion"]])
    measures = (
        ("tokens", "counting", rows.number("n_tokens")),
        ("eos_rate", "counting", rows.number("ended")),
        ("refusal", PHRASES, refusal_S),
        ("repeated_answer", "counting", repeated_answers(rows).astype(float)),
        ("most_frequent_answer", "counting", most_frequent_answers(rows).astype(float)),
    )
    return [
        tabulate(rows, Quantity(SUITE, metric, "all", scorer), value_S, models)
        for metric, scorer, value_S in measures
    ]


def repeated_answers(rows: ScoredRows) -> Bools:
    """Return whether a row's words answer another prompt too, one with a different reference.

    Prompts without a reference differ if their texts do. A response that the judge calls correct is
    no repetition: two questions may share a good answer. A model that gives one answer to every
    prompt has nearly all its rows here.
    """
    fields = rows.fields.assign(answer=rows.fields["completion"].map(normalised))
    answers = fields.groupby(["model", "prompt_type", "answer"], sort=False)["reference"]
    repeated_S = (answers.transform("nunique") > 1).to_numpy(dtype=bool)
    is_correct_S: Bools = rows.score(GOLD, "correct") == 1.0
    return repeated_S & ~is_correct_S


def most_frequent_answers(rows: ScoredRows) -> Bools:
    """Return whether a row gives its model's most frequent answer, the first one of several."""
    frequent_S = np.zeros(len(rows), dtype=bool)
    answers = rows.fields["completion"].map(normalised).to_numpy()
    for model, part in rows.fields.groupby("model", sort=False)["completion"]:
        counts = part.map(normalised).value_counts(sort=False)
        frequent_S |= (rows.fields["model"] == model).to_numpy() & (answers == counts.idxmax())
    return frequent_S


RESPONSES = Suite(SUITE, TEST, response_tables, toxicity_scorers)
