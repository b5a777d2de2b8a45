"""Earlier turns belong to a prompt wherever it is told from others, shown, or handed on."""

from dataclasses import replace

from pipeline.evaluation.generate import _blank_rows
from pipeline.evaluation.samples.records import Completion, completion_from
from pipeline.evaluation.scorers.served import _conversation
from pipeline.report.outputs import by_prompt, card
from pipeline.steps.sample import _task, _task_ids
from reward_models.conversations import Turn
from reward_models.records import Prompt, Response

HISTORY = (Turn("system", "be brief"), Turn("user", "<first>?"), Turn("assistant", "one"))
PROMPTS = [Prompt("and?", history=HISTORY), Prompt("and?"), Prompt("and?", history=HISTORY[:1])]


def test_prompts_that_differ_in_their_turns_are_different_prompts() -> None:
    assert len(set(_task_ids(PROMPTS))) == 3
    rows = _blank_rows(PROMPTS, "test", {"none": ""}, 1)
    assert len({row.id for row in rows}) == 3
    assert len(by_prompt(rows)) == 3


def test_a_sampled_task_and_a_completion_keep_the_turns() -> None:
    task = _task("t", PROMPTS[0], [Response("a", "A", "m", {}), Response("b", "B", "m", {})])
    (row,) = _blank_rows(PROMPTS[:1], "test", {"polite": "Please:"}, 1)
    assert task.history == row.history == HISTORY
    row = replace(row, model="m")
    assert completion_from(row.to_json()) == row
    assert row.prompt == "Please: and?"


def test_the_judge_and_the_reader_of_a_report_see_the_turns() -> None:
    rows = [Completion("1", model, "and?", "two", history=HISTORY) for model in "ab"]
    prompted = _conversation(*rows)[1]["content"]
    assert "system: be brief\n\nuser: <first>?\n\nassistant: one" in prompted
    assert card(rows).first.history == HISTORY
