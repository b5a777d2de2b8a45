"""Every stage asks a model the same tokens for one conversation, in whatever format it came."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.generate import _blank_rows
from reward_models.records import Prompt, Ranking, RankingTask, Response
from stages.data.demonstrations import load_demonstrations, load_prompts
from stages.data.preferences import load_pairs
from stages.data.supervised import encode
from stages.data.template import conversation_ids
from stages.reward.batches import ranked_prompts
from tests.stages.data.chat_templates import CHATS, build

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hello <|im_end|>"},
    {"role": "assistant", "content": "the fox"},
    {"role": "user", "content": "What turn?"},
]
ANSWERS = [{"role": "assistant", "content": text} for text in ("the end", "hello")]


def written(folder: Path, **row: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("chat", CHATS)
def test_every_stage_reads_a_conversation_of_any_file_as_the_same_tokens(
    chat: str, tmp_path: Path
) -> None:
    tokenizer = build(CHATS[chat])
    good, bad = ([*TURNS, answer] for answer in ANSWERS)
    demonstration = load_demonstrations(str(written(tmp_path, messages=good)))[0]
    prompt = load_prompts(str(written(tmp_path, prompt=TURNS)))[0]
    tasks, rankings = load_pairs(written(tmp_path, chosen=good, rejected=bad))
    (pair,), _ = ranked_prompts(tokenizer, tasks, rankings, max_tokens=999)
    (row,) = _blank_rows([prompt], "test", {"none": ""}, 1)
    example = encode(tokenizer, demonstration)
    prompts = {
        "fine-tuning": example.ids[: example.response_start],
        "reward model": list(pair.prompt),
        "PPO": conversation_ids(tokenizer, prompt),
        "evaluation": conversation_ids(tokenizer, Prompt(row.prompt, history=row.history)),
    }
    assert len(set(map(tuple, prompts.values()))) == 1, prompts
    assert example.ids[example.response_start :] in map(list, pair.responses)


@pytest.mark.parametrize("chat", ["chatml", "gemma"])
def test_a_ranked_task_is_asked_as_its_prompt_was(chat: str) -> None:
    tokenizer = build(CHATS[chat])
    prompt = Prompt.from_json({"messages": TURNS})
    outputs = [Response(name, name, "sft", {}) for name in "ab"]
    task = RankingTask("t", prompt.prompt, tuple(outputs), history=prompt.history)
    read_back = RankingTask.from_json(json.loads(json.dumps(task.to_json())))
    ranking = Ranking("t", "ann", "human", {"a": 1, "b": 2})
    (element,), _ = ranked_prompts(tokenizer, [read_back], [ranking], max_tokens=999)
    assert list(element.prompt) == conversation_ids(tokenizer, prompt)
    without = replace(prompt, history=prompt.history[1:])
    assert list(element.prompt) != conversation_ids(tokenizer, without)
