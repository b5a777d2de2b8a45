"""Win rates by prompt, means by use case, repeated answers, and the naming of differences."""

import random
from dataclasses import replace

import numpy as np
import pytest

from pipeline.config.evaluation import EvaluationConfig
from pipeline.evaluation.samples.records import Completion, ScoredRows
from pipeline.evaluation.samples.tables import (
    Comparison,
    Quantity,
    Resampling,
    Table,
    cells,
    comparisons,
    corrected,
    matched_pairs,
)
from pipeline.evaluation.scorers.gold import GOLD
from pipeline.evaluation.suites.preference import (
    at_equal_length,
    length_refusals,
    preference_tables,
    win_rate_tables,
)
from pipeline.evaluation.suites.responses import most_frequent_answers, repeated_answers

MODELS = ["sft", "ppo"]


def rows(scores: dict[str, list[float]], category: str | None = None) -> list[Completion]:
    return [
        Completion(
            id=f"{i:03}",
            model=model,
            prompt=f"p{i}",
            completion="",
            category=category,
            scores={"judge": {"gold": value}},
        )
        for model, values in scores.items()
        for i, value in enumerate(values)
    ]


def win_table(completions: list[Completion], part: str = "all") -> Table:
    quantity = Quantity("p", "win_rate", scorer="judge", better="higher")
    tables = win_rate_tables(ScoredRows.of(completions), MODELS, quantity, "gold", "sft")
    return next(table for table in tables if table.quantity.filter == part)


def test_win_rate_by_hand_with_ties():
    table = win_table(rows({"sft": [0, 1, 1, 0.5], "ppo": [1, 1 + 1e-9, 0, 0.9]}))
    sft, ppo = cells(table, Resampling(100))
    assert ppo.value == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert sft.value == 0.5
    assert ppo.n == 4


def test_the_interval_of_a_win_rate_covers_it_and_shrinks_with_prompts():
    draw = np.random.default_rng(0)

    def width(prompts: int) -> float:
        scores = {"sft": draw.normal(size=prompts), "ppo": draw.normal(0.5, 1, prompts)}
        completions = rows({model: list(values) for model, values in scores.items()})
        low, high = cells(win_table(completions), Resampling(2000))[1].ci95
        assert low < 0.64 < high
        return high - low

    assert width(100) / width(400) == pytest.approx(2, rel=0.2)


def test_relabelling_the_models_turns_the_rate_round():
    one, other = [0.0, 1.0, 3.0, 2.0, 2.0], [1.0, 1.0, 1.0, 0.0, 3.0]
    forth = cells(win_table(rows({"sft": one, "ppo": other})), Resampling(50))[1].value
    back = cells(win_table(rows({"sft": other, "ppo": one})), Resampling(50))[1].value
    assert forth + back == pytest.approx(1)


def test_duplicated_samples_change_neither_rate_nor_n():
    completions = rows({"sft": [0, 1, 2], "ppo": [1, 1, 1]})
    twice = completions + [replace(row, k=1) for row in completions]
    one = cells(win_table(completions), Resampling(200))[1]
    two = cells(win_table(twice), Resampling(200))[1]
    assert (one.value, one.n) == (two.value, two.n)


def test_a_failed_score_takes_its_prompt_out():
    completions = rows({"sft": [0, 0, 0], "ppo": [1, 1, -1]})
    completions[-1] = replace(completions[-1], scores={"judge": None})
    cell = cells(win_table(completions), Resampling(50))[1]
    assert (cell.value, cell.n, cell.n_failed) == (1, 2, 1)


def test_each_use_case_has_its_own_mean_and_win_rate():
    completions = rows({"sft": [0, 0], "ppo": [1, 1]}, "chat")
    completions += [
        replace(row, id=f"other{row.id}", category="list")
        for row in rows({"sft": [1, 1], "ppo": [0, 0]})
    ]
    assert cells(win_table(completions, "chat"), Resampling(20))[1].value == 1
    assert cells(win_table(completions, "list"), Resampling(20))[1].value == 0
    judged = [replace(row, suite="test", scores={GOLD: row.scores["judge"]}) for row in completions]
    tables = preference_tables(ScoredRows.of(judged), MODELS, EvaluationConfig())
    averages = [t for t in tables if (t.quantity.suite, t.quantity.metric) == ("use_cases", "gold")]
    assert [t.quantity.filter for t in averages] == ["all", "chat", "list"]
    assert cells(averages[1], Resampling(20))[1].value == 1


def compared(a: list[float], b: list[float]) -> Comparison:
    value_NM = np.array([a, b], dtype=float).T
    n = len(value_NM)
    table = Table(Quantity("s", "m"), ("a", "b"), value_NM, np.ones(n), (n, n), (0, 0))
    return corrected(comparisons(table, [("a", "b")], Resampling(2000, 2000)))[0]


def test_a_clear_fall_is_a_reduction_and_its_mirror_a_rise():
    draw = random.Random(0)
    high = [draw.random() for _ in range(80)]
    low = [value - 0.3 for value in high]
    assert compared(low, high).verdict == "reduction"
    assert compared(high, low).verdict == "rise"
    assert compared(high, low).change == pytest.approx(0.3 / np.mean(low))


def test_a_difference_whose_interval_crosses_zero_is_not_named():
    draw = np.random.default_rng(1)
    a, b = draw.normal(0, 1, 60), draw.normal(0.1, 1, 60)
    comparison = compared(list(a), list(b))
    assert comparison.ci95[0] < 0 < comparison.ci95[1]
    assert comparison.verdict == "no difference shown"


def test_binary_pairs_use_mcnemar_and_others_sign_flips():
    assert compared([1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0]).test == "mcnemar"
    assert compared([1, 0, 0.5], [0, 0, 0]).test == "sign-flip"


def test_pairs_follow_patterns():
    models = ["gpt-xl", "gpt-6b", "ppo-xl", "ppo-6b"]
    assert matched_pairs(models, ["ppo-*:gpt-*"]) == [("ppo-xl", "gpt-xl"), ("ppo-6b", "gpt-6b")]
    assert matched_pairs(["base", "sft", "ppo"], ["sft"]) == [("base", "sft"), ("ppo", "sft")]
    assert matched_pairs(["a", "b", "c"], []) == [("b", "a"), ("c", "a"), ("c", "b")]
    with pytest.raises(ValueError, match="'x:y' matches no two models"):
        matched_pairs(models, ["x:y"])


def answer(prompt: int, text: str, reference: str | None, *, correct: bool = False) -> Completion:
    return Completion(
        id=str(prompt),
        model="m",
        prompt=f"p{prompt}",
        completion=text,
        prompt_extra={} if reference is None else {"reference": reference},
        scores={"gold judge": {"correct": float(correct)}},
    )


def test_one_answer_to_questions_with_different_references_is_repeated():
    completions = [
        answer(0, "The text does not say.", "a baker"),
        answer(1, "the text does not say", "The text does not say.", correct=True),
        answer(2, "A cook.", "A cook."),
        answer(3, "A cook.", "A cook."),  # the same reference: no repetition
    ]
    assert repeated_answers(ScoredRows.of(completions)).tolist() == [True, False, False, False]


def test_without_references_different_prompts_count():
    completions = ScoredRows.of(
        [*(answer(i, "Yes.", None) for i in range(3)), answer(9, "No.", None)]
    )
    assert repeated_answers(completions).tolist() == [True, True, True, False]
    assert most_frequent_answers(completions).tolist() == [True, True, True, False]


def test_win_rates_at_equal_length_stand_beside_the_raw_one_or_say_why_not():
    draw = random.Random(0)
    completions = []
    for i in range(60):
        for model, longer in (("sft", 0), ("ppo", i % 3)):
            score = draw.random() + 0.3 * longer
            completions.append(
                Completion(
                    id=f"{i:03}",
                    model=model,
                    prompt="p",
                    completion="",
                    n_tokens=10 + 5 * longer,
                    scores={"judge": {"gold": score}},
                )
            )
    won = win_table(completions)
    raw = cells(won, Resampling(50))[1].value
    controlled, matched = at_equal_length(ScoredRows.of(completions), won, "sft")
    (cell,), (near,) = cells(controlled, Resampling(50)), cells(matched, Resampling(50))
    assert (cell.model, cell.n, near.n) == ("ppo", 60, 20)
    assert cell.value < raw
    assert length_refusals([won], "sft") == []

    completions = rows({"sft": [1.0] * 30, "ppo": [0.0] * 30})
    beaten = win_table(completions)
    controlled, _ = at_equal_length(ScoredRows.of(completions), beaten, "sft")
    assert cells(controlled, Resampling(50)) == []
    assert length_refusals([beaten], "sft") == [
        "p: ppo has no win rate at equal length, since its raw rate is 0%, outside 15% to 85%"
    ]
