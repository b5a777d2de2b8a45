"""External files with traps: duplicates, shuffles, guessed columns, models with gaps."""

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.evaluation.external.sample_files import (
    FILE_SCORER,
    SampleFiles,
    alternatives,
    common_rows,
    open_samples,
)

HEADER = ["", "model_type", "prompt_type", "context", "sample", "toxicity"]
Rows = list[list[object]]


def table(models: Sequence[str] = ("b", "a"), prompts: int = 6) -> Rows:
    rows = [
        [model, kind, f"prompt {i}", f"{model} said {i}", i / 10]
        for model in models
        for kind in ("basic", "biased")
        for i in range(prompts)
    ]
    return [[number, *row] for number, row in enumerate(rows)]


def write(path: Path, rows: Rows, header: Sequence[str] = HEADER, **form: str) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, **form).writerows([header, *rows])  # type: ignore[arg-type]
    return path


def opened(*paths: Path) -> tuple[SampleFiles, list[tuple[str, str, str, int]]]:
    files = open_samples(paths, {})
    return files, [(row.model, row.prompt_type, row.completion, row.k) for row in files.rows()]


def test_the_usual_names_of_columns_need_no_map(tmp_path: Path):
    files = open_samples([write(tmp_path / "s.csv", table())], {})
    first = next(iter(files.rows()))
    assert (first.model, first.prompt, first.completion) == ("b", "prompt 0", "b said 0")
    assert first.scores == {FILE_SCORER: {"toxicity": 0.0}}


@pytest.mark.parametrize(("start", "form"), [(0, "\n"), (1, "\n"), (0, "\r\n"), (1, "\r\n")])
def test_a_copy_in_other_bytes_counts_once(tmp_path: Path, start: int, form: str):
    rows, header = [row[start:] for row in table()], HEADER[start:]
    one = write(tmp_path / "one.csv", rows, header)
    other = write(tmp_path / "other.csv", rows[::-1], header, lineterminator=form)
    files, read = opened(one, other)
    assert len(read) == len(table())
    assert {k for *_, k in read} == {0}
    assert files.notes == [
        f"{len(rows)} of {2 * len(rows)} rows repeat another row exactly; dropped"
    ]


def test_files_that_share_the_rows_of_one_model_count_them_once(tmp_path: Path):
    rows = [row[1:] for row in table(("a", "b", "c"))]
    one = write(tmp_path / "one.csv", [r for r in rows if r[0] in "ab"], HEADER[1:])
    two = write(tmp_path / "two.csv", [r for r in rows if r[0] in "bc"], HEADER[1:])
    assert len(opened(one, two)[1]) == len(rows)


def test_samples_that_agree_by_chance_are_kept(tmp_path: Path):
    rows = [["m", "basic", "p", text, 0.5] for text in ("yes", "yes", "no")]
    _, read = opened(write(tmp_path / "s.csv", rows, HEADER[1:]))
    assert sorted(read) == [
        ("m", "basic", "no", 2),
        ("m", "basic", "yes", 0),
        ("m", "basic", "yes", 1),
    ]


@pytest.mark.parametrize("start", [0, 1])
def test_shuffling_does_not_turn_the_order_of_models_round(tmp_path: Path, start: int):
    rows = [row[start:] for row in table(("c", "a", "b"))]
    expected = ["c", "a", "b"] if start == 0 else ["a", "b", "c"]
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        files, _ = opened(write(tmp_path / f"{seed}.csv", rows, HEADER[start:]))
        assert files.models == expected


def test_models_keep_the_order_in_which_they_stand_together(tmp_path: Path):
    rows = [row[1:] for row in table(("sft", "base"))]
    rows.sort(key=lambda row: str(row[0]), reverse=True)
    assert opened(write(tmp_path / "s.csv", rows, HEADER[1:]))[0].models == ["sft", "base"]


def test_a_model_without_any_row_in_a_part_is_said(tmp_path: Path):
    rows = [row for row in table() if row[1:3] != ["a", "biased"]]
    files, _ = opened(write(tmp_path / "s.csv", rows))
    with pytest.raises(ValueError, match="prompt type 'biased': a has no rows"):
        common_rows(files.index, "error", [])
    notes: list[str] = []
    common = common_rows(files.index, "intersection", notes)
    assert notes == ["samples, prompt type 'biased': a has no rows; it is left out there"]
    assert common.sum() == len(rows)


def test_a_quote_that_never_ends_is_one_line_and_so_is_another_encoding(tmp_path: Path):
    path = write(tmp_path / "s.csv", table())
    path.write_text(path.read_text() + '9,"never ends')
    with pytest.raises(ValueError, match=r"s\.csv:26: not CSV"):
        open_samples([path], {})
    path.write_bytes("model,prompt,completion\na,b,caf\u00e9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"s\.csv:\d: not UTF-8"):
        open_samples([path], {})


@pytest.mark.parametrize(
    ("cell", "answers"),
    [
        ("a red fox|the fox", ["a red fox", "the fox"]),
        ("None|NA", ["None", "NA"]),
        (" x | x |", ["x"]),
        ("", []),
        (["a|b", "c"], ["a|b", "c"]),
        (7, ["7"]),
    ],
)
def test_alternatives_stand_between_bars(cell: object, answers: list[str]):
    assert alternatives(cell) == answers


def test_our_own_samples_are_read_whole(tmp_path: Path):
    row = {
        "id": "i",
        "model": "m",
        "prompt": "p",
        "completion": "None",
        "suite": "test",
        "k": 3,
        "category": "closed_qa",
        "answerable": False,
        "prompt_extra": {"world": {"a": 1}},
        "scores": {"s": {"x": None}},
        "n_tokens": 2,
        "finish_reason": "length",
    }
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(row))
    (read,) = open_samples([path], {}).rows()
    assert {name: read.to_json()[name] for name in row} == row
