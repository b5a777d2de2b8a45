"""Closed-domain hallucination: unsupported particulars, abstention, and what counts together."""

from dataclasses import replace

import pytest

from pipeline.config.evaluation import EvaluationConfig
from pipeline.evaluation.samples.records import Completion, ScoredRows
from pipeline.evaluation.samples.tables import Resampling, cells
from pipeline.evaluation.scorers.gold import GOLD
from pipeline.evaluation.scorers.grounding import (
    LexicalSupport,
    novel_bigrams,
    unsupported,
)
from pipeline.evaluation.scorers.scorer import scored
from pipeline.evaluation.scorers.style import abstains, normalised
from pipeline.evaluation.suites.hallucination import hallucination_tables

PASSAGE = "Bora Kel was born in 1,840 and works as a baker in Tamsin. She has two cats."
CLOSED = ["closed_qa", "summarize"]
CONFIG = EvaluationConfig(closed_domain=CLOSED)


@pytest.mark.parametrize(
    ("response", "invented"),
    [
        ("Bora Kel was born in 1840.", []),
        ("Bora lives in Tamsin.", []),
        ("She was born in 1841.", ["1841"]),
        ("The baker is from Rome.", ["Rome"]),
        ("She has 2 cats.", []),
        ("She has three cats.", ["three"]),
        ("Bakers rise early. It is so.", []),  # the first word of a sentence is no name
        ("I think I know.", []),
        ("BORA's cats.", []),
    ],
)
def test_numbers_and_names_that_the_source_does_not_hold(response: str, invented: list[str]):
    assert unsupported(PASSAGE, response) == invented


def test_more_source_never_makes_less_supported():
    response = "Kel met Anna in Rome in 1999."
    assert set(unsupported(PASSAGE + " Anna went to Rome.", response)) <= set(
        unsupported(PASSAGE, response)
    )


def test_a_copy_has_no_novel_bigrams_and_unrelated_words_have_only_novel_ones():
    assert novel_bigrams(PASSAGE, "works as a baker") == 0
    assert novel_bigrams(PASSAGE, "quite unrelated words") == 1
    assert novel_bigrams(PASSAGE, "word") == 0


@pytest.mark.parametrize(
    "response",
    [
        "The text does not say.",
        "Not in background.",
        "I have no comment.",
        "It is not mentioned in the passage.",
        "I don't know.",
        "That cannot be determined.",
    ],
)
def test_declining_is_recognised(response: str):
    assert abstains(response)


@pytest.mark.parametrize("response", ["Bora is a baker.", "No, she has two.", "He said nothing."])
def test_answers_are_not_taken_for_declining(response: str):
    assert not abstains(response)


def test_normalised_texts_are_equal_for_equal_words():
    assert normalised(" The text  does not say. ") == normalised("the text does not say")


def rows(*answers: tuple[str, bool | None]) -> list[Completion]:
    made = [
        Completion(
            id=str(i),
            model="m",
            suite="test",
            prompt="Where was she born?",
            context=PASSAGE,
            completion=text,
            category="closed_qa",
            answerable=answerable,
        )
        for i, (text, answerable) in enumerate(answers)
    ]
    return scored(made, [LexicalSupport(CLOSED)])


def rates(completions: list[Completion]) -> dict[str, float]:
    tables = hallucination_tables(ScoredRows.of(completions), ["m"], CONFIG)
    return {
        t.quantity.metric: cells(t, Resampling(50))[0].value
        for t in tables
        if t.quantity.filter == "all"
    }


def test_the_rates_by_hand():
    rate = rates(
        rows(
            ("She was born in Tamsin.", True),  # supported
            ("She was born in Rome.", True),  # invented
            ("The text does not say.", True),  # false abstention
            ("The text does not say.", False),  # right
            ("She was born in Tamsin.", False),  # an answer to an unanswerable question
        )
    )
    assert rate["hallucination"] == pytest.approx(2 / 5)
    assert rate["unsupported"] == pytest.approx(1 / 5)
    assert rate["false_abstention"] == pytest.approx(1 / 3)
    assert rate["answered_unanswerable"] == pytest.approx(1 / 2)


def test_refusing_everything_makes_nothing_up_and_shows_as_false_abstention():
    rate = rates(rows(*[("The text does not say.", True)] * 3, ("Not in background.", False)))
    assert rate["hallucination"] == 0
    assert rate["false_abstention"] == 1


def test_the_judge_decides_where_there_is_one():
    marks = {"hallucinated": 1.0, "abstained": 0.0, "correct": 0.0}
    completions = [
        replace(row, scores={**row.scores, GOLD: marks})
        for row in rows(("She was born in Tamsin.", True))
    ]
    tables = hallucination_tables(ScoredRows.of(completions), ["m"], CONFIG)
    assert {t.quantity.metric: t.quantity.scorer for t in tables}["hallucination"] == GOLD
    assert rates(completions)["hallucination"] == 1


def test_open_questions_are_no_closed_domain():
    row = Completion(
        id="a", model="m", suite="test", prompt="Why?", completion="In 1999.", category="open_qa"
    )
    completions = scored([row], [LexicalSupport(CLOSED)])
    assert completions[0].scores == {}
    assert hallucination_tables(ScoredRows.of(completions), ["m"], CONFIG) == []
