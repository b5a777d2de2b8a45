"""No prompt and no user on both sides of a split, whatever the rows are like."""

import json
import random
from pathlib import Path

import pytest

from pipeline.config.loading import checked
from pipeline.runs.splits import Groups, limited, overlaps, prompt_key, split, validation_prompts
from pipeline.steps.data import make_data
from pipeline.steps.step import DataFolder
from reward_models.atomic_files import write_jsonl
from reward_models.conversations import Turn
from reward_models.records import Demonstration, Prompt

WORDS = ["Explain", "the", "moon", "Landing", "to", "six", "Straße", "year", "old", "é", "é"]


def variant(text: str, rng: random.Random) -> str:
    """The same prompt as people type it: other white space, other case."""
    words = [rng.choice([str.upper, str.lower, str.title, str])(word) for word in text.split()]
    return rng.choice(["", " ", "\n"]) + rng.choice([" ", "  ", "\t", "\n\n"]).join(words)


def rows(rng: random.Random) -> list[Demonstration]:
    """Duplicates in variants, users with several prompts, contexts and earlier turns."""
    prompts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 4))) for _ in range(rng.randint(2, 40))]
    users = [None, *(f"u{n}" for n in range(rng.choice([1, 3, 60])))]
    rows = []
    for number in range(rng.randint(4, 120)):
        history = (Turn("user", "a"), Turn("assistant", "b")) if rng.random() < 0.1 else ()
        rows.append(
            Demonstration(
                variant(rng.choice(prompts), rng),
                f"answer {number}",
                user=rng.choice(users) if rng.random() < 0.4 else None,
                context=rng.choice([None, "", "A passage.", "a  PASSAGE."]),
                history=history,
            )
        )
    return rows


def sides_share_nothing(one: list[Demonstration], other: list[Demonstration]) -> bool:
    keys = [{prompt_key(row) for row in side} for side in (one, other)]
    users = [{row.user for row in side} - {None} for side in (one, other)]
    return not keys[0] & keys[1] and not users[0] & users[1]


@pytest.mark.parametrize("seed", range(60))
def test_a_split_tears_no_prompt_and_no_user_apart(seed: int):
    rng = random.Random(seed)
    given = rows(rng)
    number = max(1, len(given) // 10)
    try:
        training, held = split(given, number, "s", "file")
    except ValueError:
        groups = Groups(given)
        assert len({groups.of(row) for row in given}) == 1
        return
    assert sides_share_nothing(training, held)
    assert sorted(map(str, [*training, *held])) == sorted(map(str, given))
    groups = Groups(given)
    sizes = {}
    for row in training:
        sizes[groups.of(row)] = sizes.get(groups.of(row), 0) + 1
    missing = number - len(held)  # no group that is left would have fitted
    assert missing < min(sizes.values()) or missing <= 0
    assert len(held) <= max(number, min(sizes.values()))
    again = split(rng.sample(given, len(given)), number, "s", "file")
    assert set(map(str, again[1])) == set(map(str, held))


def test_a_split_of_different_prompts_has_exactly_the_asked_size_and_depends_on_the_seed():
    given = [Prompt(f"p{number}") for number in range(100)]
    held = [split(given, 10, seed, "file")[1] for seed in "ab"]
    assert [len(side) for side in held] == [10, 10]
    assert held[0] != held[1]


def test_rows_that_all_belong_together_are_refused_in_one_line():
    given = [Demonstration("a", "x", user="u"), Demonstration("b", "y", user="u")]
    with pytest.raises(ValueError, match=r"file: 2 in it, which all share a prompt or a user"):
        split(given, 1, "s", "file")


@pytest.mark.parametrize("seed", range(30))
def test_validation_prompts_are_neither_trained_on_nor_ranked(seed: int):
    rng = random.Random(seed)
    ppo = [Prompt(variant(f"p {rng.randint(0, 30)}", rng)) for _ in range(40)]
    ranking = ppo if seed % 2 else [Prompt(f"P  {rng.randint(20, 60)}") for _ in range(20)]
    ranked = [Prompt(f"p {number}") for number in range(3)]
    rest, to_rank, held = validation_prompts(
        ppo, ranking, 4, "s", ranked=ranked, demonstrations=[], where="file"
    )
    keys = {prompt_key(row) for row in held}
    assert 0 < len(held) <= 4
    for side in (rest, to_rank, ranked):
        assert keys.isdisjoint(prompt_key(row) for row in side)


def test_where_all_prompts_were_ranked_it_is_said(caplog: pytest.LogCaptureFixture):
    ppo = [Prompt(f"p{number}") for number in range(10)]
    _, _, held = validation_prompts(ppo, ppo, 1, "s", ranked=ppo, demonstrations=[], where="file")
    assert len(held) == 1
    assert "all 10 prompts were ranked" in caplog.text


def test_prompts_that_nothing_else_saw_come_first():
    ppo = [Prompt(f"p{number}") for number in range(20)]
    demonstrated = [Demonstration(f"P{number}", "x") for number in range(18)]
    _, _, held = validation_prompts(
        ppo, [Prompt("q")], 2, "s", ranked=[], demonstrations=demonstrated, where="file"
    )
    assert [row.prompt for row in held] == ["p18", "p19"]


def test_an_overlap_is_counted_by_prompt_and_by_user():
    trained = [Demonstration("One two", "x", user="u"), Demonstration("three", "y")]
    tested = [Prompt("one  TWO"), Prompt("four", user="u"), Prompt("five", user="v")]
    [overlap] = overlaps({"test_prompts": tested}, {"demonstrations": trained})
    assert (overlap.prompts, overlap.users, overlap.of) == (1, 1, 3)
    assert str(overlap) == (
        "test_prompts: 1 of 3 prompts are also in demonstrations, such as 'one  TWO'"
    )


def test_a_user_s_prompts_and_near_duplicates_are_limited_and_counted(
    caplog: pytest.LogCaptureFixture,
):
    given = [Prompt(f"{number} of one", user="u") for number in range(5)]
    given += [Prompt("Write a poem about a cat"), Prompt("write a  poem about a dog")]
    rows = limited(given, 2, 12, "file")
    assert [row.prompt for row in rows] == ["0 of one", "1 of one", "Write a poem about a cat"]
    assert "file: 4 of 7 rows are left out" in caplog.text
    assert limited(given, None, None, "file") == given


def experiment(folder: Path, **sets: list[dict[str, str]]) -> Path:
    """The data folder of an experiment on these sets."""
    files = {"demonstrations": [], "ranking_prompts": [], "test_prompts": [], **sets}
    for name, content in files.items():
        write_jsonl(folder / f"{name}.jsonl", content)
    write_jsonl(folder / "pairs.jsonl", [{"prompt": "z", "chosen": "a", "rejected": "b"}])
    data = {name: str(folder / f"{name}.jsonl") for name in files}
    labeling = {"kind": "imported", "rankings": str(folder / "pairs.jsonl")}
    mapping = {"name": "n", "data": {"kind": "files", **data}, "labeling": labeling}
    (folder / "data").mkdir()
    make_data(checked(mapping, "test"), folder / "data")
    return folder / "data"


TWICE = {
    "demonstrations": [{"prompt": f"q{i // 2}", "response": f"a{i // 2}"} for i in range(40)],
    "ranking_prompts": [{"prompt": f"p{i // 2}"} for i in range(40)],
    "test_prompts": [{"prompt": "Q1"}, {"prompt": "t"}],
}


def test_data_made_of_repeated_prompts_holds_out_prompts_that_are_not_trained_on(tmp_path: Path):
    data = DataFolder(experiment(tmp_path, **TWICE))
    assert sides_share_nothing(data.demonstrations(), data.demonstrations("validation"))
    held = {one.prompt for one in data.prompts("validation")}
    for use in ("ppo", "ranking"):
        assert held.isdisjoint(one.prompt for one in data.prompts(use))
    assert [len(data.prompts(use)) for use in ("validation", "ppo", "ranking")] == [4, 36, 36]


def test_test_prompts_that_are_trained_on_are_told_and_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder = experiment(tmp_path, **TWICE)
    overlaps_written = json.loads((folder / "overlap.json").read_text())
    in_training = "Q1" in {row.prompt.upper() for row in DataFolder(folder).demonstrations()}
    assert in_training
    assert [(one["held_out"], one["training"], one["prompts"]) for one in overlaps_written] == [
        ("test_prompts", "demonstrations", 1)
    ]
    assert "test_prompts: 1 of 2 prompts are also in demonstrations, such as 'Q1'" in caplog.text


def test_equal_texts_are_on_one_side(tmp_path: Path):
    texts = [{"text": f"text {i // 4}"} for i in range(80)]
    folder = experiment(tmp_path, **TWICE, pretraining_texts=texts)
    sides = [set(DataFolder(folder).texts(use)) for use in ("pretraining", "held_out")]
    assert sides[0].isdisjoint(sides[1])
    assert all(sides)
