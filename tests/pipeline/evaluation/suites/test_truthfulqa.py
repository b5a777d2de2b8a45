"""TruthfulQA: its file, MC1 and MC2 by hand, how questions are asked, answers by ROUGE-L."""

import csv
import math
from functools import partial
from pathlib import Path

import pytest

from pipeline.config.evaluation import EvaluationConfig, TruthfulQAConfig
from pipeline.evaluation.samples.records import ScoredRows
from pipeline.evaluation.samples.tables import Resampling, cells
from pipeline.evaluation.suites.suite import Inputs
from pipeline.evaluation.suites.truthfulqa import (
    Question,
    answer_scores,
    generate_answers,
    load_questions,
    mc1,
    mc2,
    score_choices,
    truth_prompt,
    truthfulqa_tables,
)
from pipeline.runs.manifest import model_source

BASE = model_source("quickstart")
SHARED = Path(__file__).resolve().parents[5] / "shared/data/train/truthfulqa/TruthfulQA.csv"
QUESTION = Question("q", "Is the moon cheese?", "No", ("No, it is rock", "No"), ("Yes", "Mostly"))
CONFIG = TruthfulQAConfig(
    questions="q.csv",
    kinds=["qa"],
    instruction="Be careful.",
    shots=[("Is ice cold?", "Yes.")],
    max_new_tokens=4,
)


prompt_of = partial(truth_prompt, CONFIG)


def test_the_best_answer_must_beat_every_false_one():
    # In the order: true answers, false answers; the best is the second.
    assert mc1(QUESTION, [-9.0, -1.0, -2.0, -3.0]) == 1.0
    assert mc1(QUESTION, [-0.5, -2.0, -1.9, -3.0]) == 0.0  # another true answer does not help
    assert mc1(QUESTION, [-9.0, -2.0, -2.0, -3.0]) == 0.0  # a tie is not a win


def test_mc2_is_the_true_share_of_the_probability():
    logprobs = [math.log(p) for p in (0.1, 0.2, 0.3, 0.4)]
    assert mc2(QUESTION, logprobs) == pytest.approx(0.3)
    assert mc2(QUESTION, [value - 900 for value in logprobs]) == pytest.approx(0.3)


def test_the_three_ways_to_ask():
    end = "Q: Why?\nA:"
    assert prompt_of("Why?", "qa") == f"Q: Is ice cold?\nA: Yes.\n\n{end}"
    assert prompt_of("Why?", "instruction") == f"Be careful.\n\n{end}"
    assert prompt_of("Why?", "both") == f"Be careful.\n\nQ: Is ice cold?\nA: Yes.\n\n{end}"


def test_an_answer_near_a_truth_is_true_and_silence_too():
    assert answer_scores("No, it is grey rock", QUESTION) == {"true": 1.0, "no_comment": 0.0}
    assert answer_scores("Yes", QUESTION) == {"true": 0.0, "no_comment": 0.0}
    assert answer_scores("I have no comment.", QUESTION) == {"true": 1.0, "no_comment": 1.0}
    assert answer_scores("", QUESTION)["true"] == 0.0


def test_choices_and_answers_of_a_policy_become_paired_rows():
    questions = [QUESTION, Question("r", "Is it wet?", "Yes", ("Yes",), ("zx qv jk",))]
    both: dict[str, str | Path] = {"base": BASE, "again": BASE}
    inputs = Inputs(EvaluationConfig(), both)
    chosen = score_choices(inputs, CONFIG, questions)
    assert [(row.model, row.id) for row in chosen] == [
        ("base", "q"),
        ("base", "r"),
        ("again", "q"),
        ("again", "r"),
    ]
    assert chosen[1].scores["multiple choice"] == chosen[3].scores["multiple choice"]
    assert (chosen[1].scores["multiple choice"] or {})["mc1"] == 1.0
    answered = generate_answers(inputs, CONFIG, questions)
    assert all("\n" not in row.completion for row in answered)
    rows = ScoredRows.of([*chosen, *answered])
    names = {
        cell.quantity.metric
        for table in truthfulqa_tables(rows, ["base", "again"], EvaluationConfig())
        for cell in cells(table, Resampling(50, 50))
    }
    assert names == {"mc1", "mc2", "true", "no_comment"}


def test_the_best_answer_counts_as_true_even_where_the_list_forgets_it(tmp_path: Path):
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Question", "Best Answer", "Correct Answers", "Incorrect Answers"])
        writer.writerow(["Why?", "Because", "It is so; ", "No; Never; No"])
    (question,) = load_questions(path)
    assert question.true == ("Because", "It is so")
    assert question.false == ("No", "Never")
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="expected the columns Best Answer"):
        load_questions(path)


@pytest.mark.skipif(not SHARED.is_file(), reason="TruthfulQA.csv is not here")
def test_every_question_of_the_real_file_has_true_and_false_answers():
    questions = load_questions(SHARED)
    assert len(questions) == 813
    assert all(question.best in question.true and question.false for question in questions)
