"""What moves scores without merit: length, not ending, declining, saying the same to everyone."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.config.evaluation import EvaluationConfig
from pipeline.evaluation.generate import TEST
from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.samples.tables import Quantity, Table, tabulate
from pipeline.evaluation.scorers.gold import GOLD, WORLD
from pipeline.evaluation.scorers.wording import abstains, normalised

SUITE = "responses"


def response_suite_tables(
    rows: Sequence[Completion], models: Sequence[str], _: EvaluationConfig
) -> list[Table]:
    """The same over the answers to test prompts."""
    return response_tables([row for row in rows if row.suite == TEST], models)


def response_tables(rows: Sequence[Completion], models: Sequence[str]) -> list[Table]:
    """Tokens, EOS rate, refusals, repeated answers and the most frequent answer's share."""
    repeated, frequent = repeated_answers(rows), most_frequent_answers(rows)
    measures: list[tuple[str, str, Callable[[Completion], float | None]]] = [
        ("tokens", "counting", lambda row: None if row.n_tokens is None else float(row.n_tokens)),
        ("eos_rate", "counting", lambda row: float(row.ended)),
        ("refusal", "phrases", lambda row: float(abstains(row.completion))),
        ("repeated_answer", "counting", lambda row: float(key_of(row) in repeated)),
        ("most_frequent_answer", "counting", lambda row: float(key_of(row) in frequent)),
    ]
    return [
        tabulate(rows, Quantity(SUITE, metric, "all", scorer), of, models)
        for metric, scorer, of in measures
    ]


RowKey = tuple[str, str, str, int]


def key_of(row: Completion) -> RowKey:
    """What tells one row from all others of its suite."""
    return row.model, row.prompt_type, row.id, row.k


def repeated_answers(rows: Sequence[Completion]) -> set[RowKey]:
    """Rows whose words answer another prompt too, although the two have different references.

    Prompts without a reference differ if their texts do. A response that the judge calls correct is
    no repetition: two questions may share a good answer. A model that says one thing to everyone
    has nearly all its rows here.
    """
    said: dict[tuple[str, str, str], list[Completion]] = defaultdict(list)
    for row in rows:
        said[row.model, row.prompt_type, normalised(row.completion)].append(row)
    found = set()
    for same in said.values():
        references = {str(_reference(row)) for row in same}
        if len(references) > 1:
            found |= {key_of(row) for row in same if not _correct(row)}
    return found


def most_frequent_answers(rows: Sequence[Completion]) -> set[RowKey]:
    """Rows that give their model's most frequent answer."""
    said: dict[str, dict[str, list[RowKey]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        said[row.model][normalised(row.completion)].append(key_of(row))
    largest = [max(answers.values(), key=len) for answers in said.values()]
    return {key for keys in largest for key in keys}


def _reference(row: Completion) -> Any:
    """The reference answer, under `reference` or in the judge's world; else the prompt itself."""
    inside = row.prompt_extra.get(WORLD, row.prompt_extra)
    return inside.get("reference", (row.history, row.context, row.prompt))


def _correct(row: Completion) -> bool:
    return row.has(GOLD, "correct") and row.score(GOLD, "correct") == 1.0
