"""Preference pairs of others become tasks and rankings: TRL's formats and whole dialogues."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from stages.data.preferences import load_pairs

SHARED = Path(__file__).resolve().parents[4] / "shared/data/train/hh-rlhf"
DIALOGUE = "\n\nHuman: Is ice cold?\n\nAssistant: Yes.\n\nHuman: Why?\n\nAssistant:"


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chosen_of(path: Path) -> list[tuple[str, str, str]]:
    """Prompt, preferred response and the other of every pair in the file."""
    rows = []
    for task, ranking in zip(*load_pairs(path), strict=True):
        ranking.check_against(task)
        texts = {response.id: response.text for response in task.responses}
        best, worst = sorted(texts, key=ranking.ranks.__getitem__)
        rows.append((task.prompt, texts[best], texts[worst]))
    return rows


def test_every_format_says_the_same(tmp_path: Path):
    user = {"role": "user", "content": "Why?"}
    good, bad = ({"role": "assistant", "content": text} for text in ("Because.", "No."))
    rows = [
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
        {"prompt": "Human: Why?\n\nAssistant:", "chosen": " Because.", "rejected": " No."},
        {"prompt": "Why?", "chosen": [user, good], "rejected": [user, bad]},
        {"chosen": [user, good], "rejected": [user, bad]},
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
    ]
    assert chosen_of(write(tmp_path / "p.jsonl", *rows)) == [("Why?", "Because.", "No.")] * 5


def test_the_prompt_of_two_dialogues_is_what_they_share_up_to_the_last_answer(tmp_path: Path):
    row = {"chosen": DIALOGUE + " It is frozen.", "rejected": DIALOGUE + " It is warm."}
    path = write(tmp_path / "d.jsonl", row)
    assert chosen_of(path) == [("Why?", "It is frozen.", "It is warm.")]
    turns = [("user", "Is ice cold?"), ("assistant", "Yes."), ("user", "Why?")]
    history = load_pairs(path)[0][0].history
    assert [(turn.role, turn.content) for turn in history] == turns[:2]
    messages = [{"role": role, "content": text} for role, text in turns]
    spoken = {
        key: [*messages, {"role": "assistant", "content": text}]
        for key, text in (("chosen", "It is frozen."), ("rejected", "It is warm."))
    }
    assert load_pairs(write(tmp_path / "m.jsonl", spoken)) == load_pairs(path)


def test_pairs_of_a_data_set_by_name_are_those_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    path = write(
        tmp_path / "data" / "train.jsonl", {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
    )
    assert load_pairs(f"hf:{tmp_path / 'data'}:train") == load_pairs(path)
    with pytest.raises(ValueError, match=r"hf:.*:nosuch: no data set to be had"):
        load_pairs(f"hf:{tmp_path / 'data'}:nosuch")


def test_equal_responses_say_nothing_and_the_order_tells_nothing(tmp_path: Path):
    rows = [{"prompt": "p", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(64)]
    same = {"prompt": "p", "chosen": "x", "rejected": "x"}
    tasks, rankings = load_pairs(write(tmp_path / "p.jsonl", *rows, same))
    assert len(tasks) == 64
    first = sum(ranking.ranks["a"] == 1 for ranking in rankings)
    assert 16 < first < 48


def test_a_response_that_begins_with_its_prompt_keeps_it(tmp_path: Path):
    row = {"prompt": "Hello", "chosen": "Hello! How can I help?", "rejected": "Hello."}
    assert chosen_of(write(tmp_path / "p.jsonl", row)) == [tuple(row.values())]


def test_a_dialogue_that_both_texts_repeat_is_their_prompt(tmp_path: Path):
    row = {"prompt": DIALOGUE, "chosen": DIALOGUE + " Frozen.", "rejected": DIALOGUE + " Warm."}
    implicit = {name: row[name] for name in ("chosen", "rejected")}
    explicit = {"prompt": DIALOGUE, "chosen": " Frozen.", "rejected": " Warm."}
    loaded = [load_pairs(write(tmp_path / "p.jsonl", one)) for one in (row, implicit, explicit)]
    assert loaded[0] == loaded[1] == loaded[2]


def user(text: object) -> dict[str, object]:
    return {"role": "user", "content": text}


def assistant(text: object) -> dict[str, object]:
    return {"role": "assistant", "content": text}


def test_turns_that_both_completions_share_are_history(tmp_path: Path):
    shared = [assistant("hello"), user("2+2?")]
    row = {
        "prompt": [user("hi")],
        "chosen": [*shared, assistant("4")],
        "rejected": [*shared, assistant("5")],
    }
    (task,), _ = load_pairs(write(tmp_path / "p.jsonl", row))
    assert [turn.content for turn in task.history] == ["hi", "hello"]
    assert task.prompt == "2+2?"


def test_parts_of_text_and_messages_as_json_text_are_read(tmp_path: Path):
    part = [{"type": "text", "text": "4"}]
    rows = [
        {"prompt": [user("2+2?")], "chosen": [assistant(part)], "rejected": [assistant("5")]},
        {
            "prompt": "2+2?",
            "chosen": json.dumps([user("2+2?"), assistant("4")]),
            "rejected": json.dumps([user("2+2?"), assistant("5")]),
        },
    ]
    assert chosen_of(write(tmp_path / "p.jsonl", *rows)) == [("2+2?", "4", "5")] * 2


@pytest.mark.parametrize(
    ("prompt", "chosen", "message"),
    [
        ([user("a")], [assistant(None)], "content is null, expected a text"),
        ([user("a")], [assistant([{"type": "image"}])], "part of type 'image', expected text"),
        ([user("a")], [user("b")], "ends with the user's turn"),
        ([user("a")], [assistant("b"), user("c"), assistant("d")], "differ before their last"),
        ([user("a"), {"role": "tool", "content": "9"}], [assistant("b")], "the role 'tool'"),
        ([user("a")], [{**assistant("b"), "tool_calls": [{}]}], "'tool_calls', which is no text"),
        ("a", [user("b"), assistant("c")], "neither answers nor repeats the prompt"),
        ([user("a")], [], "an empty list"),
        ([user("a")], None, "'chosen' is NoneType"),
    ],
)
def test_what_is_no_answer_is_refused_by_file_and_line(
    tmp_path: Path, prompt: Any, chosen: Any, message: str
):
    row = {"prompt": prompt, "chosen": chosen, "rejected": [assistant("no")]}
    fine = {"prompt": "a", "chosen": "b", "rejected": "c"}
    with pytest.raises(ValueError, match=rf"p\.jsonl:2: .*{message}"):
        load_pairs(write(tmp_path / "p.jsonl", fine, row))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"p\.jsonl:1: not JSON"),
        ({"prompt": "x", "chosen": "a"}, "expected an object with 'chosen' and 'rejected'"),
        ({"chosen": "a", "rejected": "b"}, "no 'prompt', and the two texts do not begin"),
        (
            {"prompt": "x", "chosen": 3, "rejected": "b"},
            "'chosen' is int, expected a string or messages",
        ),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, row: Any, message: str):
    path = tmp_path / "p.jsonl"
    path.write_text((row if isinstance(row, str) else json.dumps(row)) + "\n")
    with pytest.raises(ValueError, match=message):
        load_pairs(path)


def test_gzipped_files_are_read(tmp_path: Path):
    path = tmp_path / "p.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}) + "\n")
    assert chosen_of(path) == [("p", "a", "b")]


@pytest.mark.skipif(not SHARED.is_dir(), reason="hh-rlhf is not here")
def test_every_dialogue_of_hh_rlhf_splits():
    tasks, _ = load_pairs(SHARED / "harmless-base-test.jsonl.gz")
    assert len(tasks) == 2312
    for task in tasks:
        roles = [turn.role for turn in task.history]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
