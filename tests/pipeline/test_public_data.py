"""The converter of public files writes what the stages read."""

from pathlib import Path

import pytest

from pipeline.studies.public_data import Sizes, write_smollm2
from reward_models.records import Demonstration, Prompt, Ranking, RankingTask, read_records
from stages.data.demonstrations import pretraining_texts

SHARED = Path(__file__).parents[3] / "shared" / "data" / "train"
QA_FEEDBACK = SHARED / "qa-feedback" / "dev_feedback.json"
SEED_TASKS = SHARED / "self-instruct" / "seed_tasks.jsonl"


@pytest.mark.skipif(
    not (QA_FEEDBACK.is_file() and SEED_TASKS.is_file()),
    reason="the public files (qa-feedback, self-instruct) are not beside this checkout",
)
def test_rankings_name_the_tasks_and_no_test_prompt_is_practised(tmp_path):
    write_smollm2(SEED_TASKS, QA_FEEDBACK, tmp_path, Sizes())
    tasks = read_records(tmp_path / "tasks.jsonl", RankingTask)
    assert {r.task for r in read_records(tmp_path / "rankings.jsonl", Ranking)} == {
        task.id for task in tasks
    }
    assert len(read_records(tmp_path / "demonstrations.jsonl", Demonstration)) > 16
    assert len(list(pretraining_texts(str(tmp_path / "pretraining_texts.jsonl")))) > 300
    uses = [read_records(tmp_path / f"{use}_prompts.jsonl", Prompt) for use in ("ppo", "test")]
    assert not {p.prompt for p in uses[0]} & {p.prompt for p in uses[1]}
