"""Preference pairs of others become tasks and rankings: TRL's formats and whole dialogues."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from stages.data.preferences import load_pairs

SHARED = Path(__file__).resolve().parents[3] / "shared/data/train/hh-rlhf"
DIALOGUE = "\n\nHuman: Is ice cold?\n\nAssistant: Yes.\n\nHuman: Why?\n\nAssistant:"


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chosen_of(path: Path) -> list[tuple[str, str, str]]:
    """Prompt, preferred response and the other of every pair in the file."""
    found = []
    for task, ranking in zip(*load_pairs(path), strict=True):
        ranking.check_against(task)
        texts = {response.id: response.text for response in task.responses}
        best, worst = sorted(texts, key=ranking.ranks.__getitem__)
        found.append((task.prompt, texts[best], texts[worst]))
    return found


def test_the_three_formats_of_trl_say_the_same(tmp_path: Path):
    user = {"role": "user", "content": "Why?"}
    good, bad = ({"role": "assistant", "content": text} for text in ("Because.", "No."))
    rows = [
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
        {"prompt": "Why?", "chosen": "Why? Because.", "rejected": "Why? No."},
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
    ]
    assert chosen_of(write(tmp_path / "p.jsonl", *rows)) == [("Why?", "Because.", "No.")] * 3


def test_the_prompt_of_two_dialogues_is_what_they_share_up_to_the_last_answer(tmp_path: Path):
    row = {"chosen": DIALOGUE + " It is frozen.", "rejected": DIALOGUE + " It is warm."}
    expected = "Human: Is ice cold?\n\nAssistant: Yes.\n\nHuman: Why?"
    path = write(tmp_path / "d.jsonl", row)
    assert chosen_of(path) == [(expected, "It is frozen.", "It is warm.")]
    turns = [("user", "Is ice cold?"), ("assistant", "Yes."), ("user", "Why?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    spoken = {
        key: [*messages, {"role": "assistant", "content": text}]
        for key, text in (("chosen", "It is frozen."), ("rejected", "It is warm."))
    }
    assert chosen_of(write(tmp_path / "m.jsonl", spoken)) == chosen_of(path)


def test_equal_responses_say_nothing_and_the_order_tells_nothing(tmp_path: Path):
    rows = [{"prompt": "p", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(64)]
    same = {"prompt": "p", "chosen": "x", "rejected": "x"}
    tasks, rankings = load_pairs(write(tmp_path / "p.jsonl", *rows, same))
    assert len(tasks) == 64
    first = sum(ranking.ranks["a"] == 1 for ranking in rankings)
    assert 16 < first < 48


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"p\.jsonl:1: not JSON"),
        ({"prompt": "x", "chosen": "a"}, "expected an object with 'chosen' and 'rejected'"),
        ({"chosen": "a", "rejected": "b"}, "no 'prompt', and the two texts do not begin"),
        ({"prompt": "x", "chosen": 3, "rejected": "b"}, "expected a text or messages, found int"),
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
    pairs = chosen_of(SHARED / "harmless-base-test.jsonl.gz")
    assert len(pairs) == 2312
    assert all(prompt.startswith("Human:") for prompt, _, _ in pairs)
