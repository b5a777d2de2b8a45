"""Six verdicts on four answers become one ranking, and the public file reads as it is."""

import json
from itertools import combinations, product
from pathlib import Path

import pytest

from stages.data.demonstrations import load_demonstrations
from stages.data.preferences import PAIRS, load_qa_feedback, ranks_from_verdicts

SHARED = Path(__file__).parents[4] / "shared" / "data" / "train"
QA_FEEDBACK = SHARED / "qa-feedback" / "dev_feedback.json"
SEED_TASKS = SHARED / "self-instruct" / "seed_tasks.jsonl"
with_the_data = pytest.mark.skipif(
    not (QA_FEEDBACK.is_file() and SEED_TASKS.is_file()),
    reason="the public files (qa-feedback, self-instruct) are not beside this checkout",
)


def row(**changes: object) -> dict[str, object]:
    feedback = {"errors": [{"error type": "Irrelevant"}], "corrected-prediction": "It is."}
    answers = {f"prediction {number}": f"answer {number}" for number in range(1, 5)}
    passages = [["A", "A\n\nOne two.", "Three four."], ["B", "B\n\nFive six."]]
    rest = {"question": "Is it?", "passages": passages, "preference": [1, 1, 1, 1, 1, 1]}
    return {**rest, **answers, "feedback": feedback, **changes}


def write(folder: Path, *rows: object) -> Path:
    path = folder / "feedback.json"
    path.write_text(json.dumps(list(rows)))
    return path


def test_every_total_preorder_comes_back_from_its_verdicts():
    for levels in product(range(4), repeat=4):
        ranks = tuple(1 + sum(other < level for other in levels) for level in levels)
        verdicts = [
            0 if ranks[a] == ranks[b] else 1 if ranks[a] < ranks[b] else 2
            for a, b in combinations(range(4), 2)
        ]
        assert ranks_from_verdicts(verdicts) == ranks


def test_a_cycle_gives_no_ranking():
    cycle = {(0, 1): 1, (1, 2): 1, (0, 2): 2}  # 1 beats 2 beats 3 beats 1
    assert ranks_from_verdicts([cycle.get(pair, 1) for pair in PAIRS]) is None


def test_a_row_gives_task_ranking_flag_and_demonstration(tmp_path):
    made_up = {"errors": [{"error type": "Unverifiable"}], "corrected-prediction": "No."}
    read = load_qa_feedback(write(tmp_path, row(feedback=made_up)))[0]
    assert read.task.responses[0].text == "answer 1"
    assert read.task.context == "A\n\nOne two. Three four.\n\nB\n\nFive six."
    assert read.ranking is not None
    assert list(read.ranking.ranks.values()) == [1, 2, 3, 4]
    assert read.ranking.kind == "imported"
    assert read.ranking.flags == {"qa-feedback-0000-1": ["hallucination"]}
    assert read.demonstration is not None
    assert read.demonstration.response == "No."


def test_shortened_passages_keep_whole_sentences_of_each_in_turn(tmp_path):
    read = load_qa_feedback(write(tmp_path, row()), context_words=5)[0]
    assert read.task.context == "A\n\nOne two.\n\nB\n\nFive six."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feedback": {}}, "key 'errors' is missing"),
        ({"preference": [1, 2]}, "expected 6 of 0, 1 or 2"),
        ({"preference": [1, 1, 1, 1, 1, 7]}, "expected 6 of 0, 1 or 2"),
        ({"question": ""}, "'prompt' is empty"),
    ],
)
def test_a_bad_row_is_named(tmp_path, changes, message):
    path = write(tmp_path, row(), row(**changes))
    with pytest.raises(ValueError, match=rf"feedback\.json, entry 2: .*{message}"):
        load_qa_feedback(path)


@with_the_data
def test_the_public_file_gives_500_rankings_that_keep_every_verdict():
    rows = json.loads(QA_FEEDBACK.read_text())
    questions = load_qa_feedback(QA_FEEDBACK)
    assert len(questions) == 500
    ordered = 0
    for question, raw in zip(questions, rows, strict=True):
        assert question.ranking is not None
        question.ranking.check_against(question.task)
        ranks = list(question.ranking.ranks.values())
        for (a, b), verdict in zip(PAIRS, raw["preference"], strict=True):
            if verdict:
                assert (ranks[a] < ranks[b]) == (verdict == 1)
            ordered += verdict == 0 and ranks[a] != ranks[b]
    assert ordered == 54
    assert sum(question.demonstration is None for question in questions) == 13


@with_the_data
def test_the_seed_tasks_give_175_demonstrations():
    assert len(load_demonstrations(str(SEED_TASKS))) == 175
