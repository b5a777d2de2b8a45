"""Every usual format gives the same demonstrations; every mistake is one line that says where."""

import json
from pathlib import Path

import pytest

from reward_models.records import Demonstration, Prompt
from stages.data.demonstrations import (
    load_demonstrations,
    load_prompts,
    pretraining_texts,
)

USER = {"role": "user", "content": "Name a colour."}
ASSISTANT = {"role": "assistant", "content": "Red."}
SYSTEM = {"role": "system", "content": "Be brief."}
WANTED = [Demonstration("Name a colour.", "Red.")]


def file(folder: Path, *rows: object, name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Name a colour.", "response": "Red."},
        {"prompt": "Name a colour.", "completion": "Red."},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"messages": [USER, ASSISTANT]},
        {
            "conversations": [
                {"from": "human", "value": USER["content"]},
                {"from": "gpt", "value": ASSISTANT["content"]},
            ]
        },
        {"prompt": "Human: Name a colour.\n\nAssistant:", "completion": " Red."},
        {"prompt": "Name a colour.", "messages": [USER, ASSISTANT]},
        {"instruction": "Name a colour.", "input": "", "output": "Red."},
        {"instruction": "Name a colour.", "instances": [{"input": "", "output": "Red."}]},
    ],
    ids=[
        "own",
        "completion",
        "conversational",
        "messages",
        "sharegpt",
        "dialogue",
        "prompt beside messages",
        "alpaca",
        "self-instruct",
    ],
)
def test_every_format_says_the_same(tmp_path, row):
    source = file(tmp_path, row)
    assert load_demonstrations(source) == WANTED
    assert load_prompts(source) == [Prompt("Name a colour.")]


def test_unknown_keys_are_kept(tmp_path):
    row = {"prompt": "a", "response": "b", "user": "u1", "world": {"x": 1}}
    assert load_demonstrations(file(tmp_path, row))[0].to_json() == row


def test_the_turns_before_the_last_are_the_history(tmp_path):
    again = {"role": "user", "content": "Another."}
    blue = {"role": "assistant", "content": "Blue."}
    messages = [SYSTEM, USER, ASSISTANT, again, blue]
    loaded = load_demonstrations(file(tmp_path, {"messages": messages}))[0]
    assert [turn.to_json() for turn in loaded.history] == messages[:3]
    assert (loaded.prompt, loaded.response, loaded.context) == ("Another.", "Blue.", None)


def test_a_prompt_only_conversation_is_a_prompt(tmp_path):
    assert load_prompts(file(tmp_path, {"prompt": [USER]})) == [Prompt("Name a colour.")]


def test_self_instruct_gives_a_demonstration_for_each_instance(tmp_path):
    instances = [{"input": "1 2", "output": "3"}, {"input": "2 2", "output": "4"}]
    row = {"id": "s", "instruction": "Add.", "instances": instances, "is_classification": False}
    loaded = load_demonstrations(file(tmp_path, row))
    assert [(d.id, d.prompt, d.response) for d in loaded] == [
        ("s/0", "Add.\n\n1 2", "3"),
        ("s/1", "Add.\n\n2 2", "4"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{broken", "not JSON"),
        ({"question": "?"}, r"none of the known formats; found \['question'\]"),
        ({"prompt": "a", "response": ""}, "'response' is empty"),
        ({"prompt": 3, "completion": "b"}, "'prompt' is int, expected a string"),
        ({"messages": [ASSISTANT]}, "without a user's message"),
        ({"messages": [USER]}, "no response"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "role 'bot'"),
        ({"messages": "hello"}, "'messages' is str, expected a list"),
    ],
)
def test_a_bad_row_is_one_line_with_file_and_line(tmp_path, row, message):
    source = file(tmp_path, {"prompt": "a", "response": "b"}, row)
    with pytest.raises(ValueError, match=rf"rows\.jsonl:2: .*{message}") as caught:
        load_demonstrations(source)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_empty_file_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: no such file"):
        load_demonstrations(str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(ValueError, match=r"rows\.jsonl: no demonstration in it"):
        load_demonstrations(file(tmp_path, ""))


def test_a_data_set_is_loaded_by_name_and_split(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    file(folder, {"prompt": "a", "completion": "b"}, name="train.jsonl")
    file(folder, {"prompt": "c", "completion": "d"}, name="test.jsonl")
    assert load_demonstrations(f"hf:{folder}") == [Demonstration("a", "b")]
    assert load_demonstrations(f"hf:{folder}:test") == [Demonstration("c", "d")]
    with pytest.raises(ValueError, match=r"hf:.*:nosuch: no data set to be had") as caught:
        load_demonstrations(f"hf:{folder}:nosuch")
    assert "\n" not in str(caught.value)


def test_texts_come_from_rows_or_from_blocks_between_blank_lines(tmp_path):
    assert list(pretraining_texts(file(tmp_path, {"text": "one"}, {"text": "two"}))) == [
        "one",
        "two",
    ]
    (tmp_path / "t.txt").write_text("one\nline\n\n\ntwo\n")
    assert list(pretraining_texts(str(tmp_path / "t.txt"))) == ["one\nline", "two"]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "b.txt").write_text("three\n")
    (tmp_path / "texts" / "a.jsonl").write_text('{"text": "two"}\n')
    assert list(pretraining_texts(str(tmp_path / "texts"))) == ["two", "three"]
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: expected a key 'text'"):
        list(pretraining_texts(file(tmp_path, {"body": "x"})))
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="no text in it"):
        list(pretraining_texts(str(tmp_path / "empty.txt")))


def test_texts_are_read_one_by_one(tmp_path):
    """A text is read from the file only when it is asked for."""
    path = file(tmp_path, {"text": "one"}, {"body": "no text"})
    assert next(pretraining_texts(path)) == "one"
    path = tmp_path / "t.txt"
    path.write_bytes(b"one\n\n" + b"x\n\n" * 100_000 + b"\xff")
    assert next(pretraining_texts(str(path))) == "one"
