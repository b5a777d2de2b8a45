"""The same rows from every format; what is not what its name says is refused in one line."""

import datetime
import gzip
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_models.row_files import as_json, read_rows, read_text

ROWS = [
    {"text": "Grüße, 🙂\u2028 line", "label": "a"},
    {"text": 'two\nlines, a "quote" and a comma', "label": "b"},
    {"text": "x" * 1_000_000, "label": "c"},
]


def as_lines(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def as_csv(path: Path, delimiter: str = ",") -> None:
    import csv

    with path.open("w", encoding="utf-8", newline="") as out:
        written = csv.writer(out, delimiter=delimiter)
        written.writerow(ROWS[0])
        written.writerows(row.values() for row in ROWS)


def gzipped(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def done(path: Path) -> None:
        write(path)
        path.write_bytes(gzip.compress(path.read_bytes()))

    return done


def with_mark(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def done(path: Path) -> None:
        write(path)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    return done


FORMATS: dict[str, Callable[[Path], None]] = {
    "rows.jsonl": as_lines,
    "lines.json": as_lines,
    "rows.ndjson": as_lines,
    "anything": as_lines,
    "list.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)) and None,
    "list.jsonl": lambda path: path.write_text(json.dumps(ROWS, ensure_ascii=False)) and None,
    "rows.csv": as_csv,
    "ROWS.CSV": as_csv,
    "rows.tsv": lambda path: as_csv(path, "\t"),
    "rows.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "rows.jsonl.gz": gzipped(as_lines),
    "list.json.gz": gzipped(lambda path: path.write_text(json.dumps(ROWS)) and None),
    "rows.csv.gz": gzipped(as_csv),
    "marked.jsonl": with_mark(as_lines),
    "marked.csv": with_mark(as_csv),
    "marked.json": with_mark(lambda path: path.write_text(json.dumps(ROWS)) and None),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    FORMATS[name](tmp_path / name)
    assert [row for _, row in read_rows(tmp_path / name)] == ROWS


def test_a_row_is_known_by_its_place(tmp_path: Path) -> None:
    locations = {}
    for name in ("rows.jsonl", "list.json", "rows.csv", "rows.parquet"):
        FORMATS[name](tmp_path / name)
        locations[name] = [where for where, _ in read_rows(tmp_path / name)][1]
    assert [location.removeprefix(f"{tmp_path}/") for location in locations.values()] == [
        "rows.jsonl:2",
        "list.json, entry 2",
        "rows.csv:4",
        "rows.parquet, row 2",
    ]


def test_an_object_over_several_lines_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(ROWS[0], indent=2))
    assert [row for _, row in read_rows(tmp_path / "one.json")] == ROWS[:1]


def parquet() -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["a"] * 500}), out)
    return bytes(out.getvalue())


LINE = b'{"text": "a"}\n'
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n"
WRONG = {
    "latin-1": ("r.jsonl", LINE + b'{"text": "Gr\xfc\xdfe"}\n', r"r\.jsonl:2: not UTF-8 .*0xfc"),
    "latin-1 in a table": ("r.csv", b"text\na\nGr\xfc\xdfe\n", r"r\.csv:3: not UTF-8"),
    "latin-1 in a list": ("r.json", b'[\n{"a": "\xfc"}]', r"r\.json:2: not UTF-8"),
    "utf-16": ("r.csv", "text\na\n".encode("utf-16"), "UTF-16 .*expected UTF-8"),
    "half a character": (
        "r.jsonl",
        LINE + b'{"text": "\\ud83d"}\n',
        r"r\.jsonl:2: \\ud83d is half",
    ),
    "lfs pointer": ("r.jsonl", POINTER, "a Git LFS pointer, not the data"),
    "lfs pointer, table": ("r.csv", POINTER, "a Git LFS pointer, not the data"),
    "lfs pointer, parquet": ("r.parquet", POINTER, "a Git LFS pointer, not the data"),
    "lfs pointer, gzipped name": ("r.jsonl.gz", POINTER, "a Git LFS pointer, not the data"),
    "parquet as lines": ("r.jsonl", parquet(), r"Parquet by its content; expected .*\.parquet"),
    "parquet as a table": ("r.csv", parquet(), "Parquet by its content"),
    "lines as parquet": ("r.parquet", LINE, "not Parquet"),
    "cut parquet": ("r.parquet", parquet()[:-20], "not Parquet"),
    "gzip without its name": ("r.jsonl", gzip.compress(LINE), r"gzipped by its content.*\.gz"),
    "lines as gzip": ("r.jsonl.gz", LINE, "not gzipped, though its name says so"),
    "cut gzip": ("r.jsonl.gz", gzip.compress(LINE * 999)[:-9], "cut or damaged"),
    "damaged gzip": ("r.csv.gz", gzip.compress(LINE)[:12] + b"\xff" * 30, "cut or damaged"),
    "zip": ("r.csv", b"PK\x03\x04rest", "a ZIP archive or a spreadsheet"),
    "zstd": ("r.jsonl", b"\x28\xb5\x2f\xfdrest", "compressed by zstd"),
    "database": ("r.jsonl", b"SQLite format 3\0", "an SQLite database"),
    "web page": ("r.jsonl", b"<!DOCTYPE html><html>", "a web page"),
    "json as a table": ("r.csv", LINE, "JSON by its content"),
    "nul": ("r.csv", b"text\na\0b\n", r"r\.csv:2: a NUL byte"),
    "unknown kind": ("r.xyz", b"text\n", "unknown kind"),
    "no object": ("r.jsonl", LINE + b"3\n", r"r\.jsonl:2: int, expected a JSON object"),
    "no object in a list": ("r.json", b'[{"a": 1}, "b"]', "entry 2: str, expected a JSON object"),
    "cut list": ("r.json", b'[{"a": 1},\n{"b"', r"r\.json:2: not JSON"),
    "cut line": ("r.jsonl", LINE + b'{"a": ', r"r\.jsonl:2: not JSON"),
    "infinity": ("r.jsonl", b'{"a": Infinity}', r"r\.jsonl:1: .*Infinity is no number"),
    "beyond a number": ("r.jsonl", b'{"a": 1e999}', r"r\.jsonl:1: .*1e999 is beyond"),
    "a huge whole number": ("r.jsonl", b'{"a": ' + b"9" * 5000 + b"}", r"r\.jsonl:1: not JSON"),
    "a key twice": ("r.jsonl", b'{"a": 1, "a": 2}', r"r\.jsonl:1: .*'a' occurs twice"),
    "deep": ("r.jsonl", b'{"a": ' + b"[" * 99_999, r"r\.jsonl:1: not JSON"),
    "a column twice": ("r.csv", b"a,a\n1,2\n", r"r\.csv:1: a column name occurs twice"),
    "a short row": ("r.csv", b"a,b\n1,2\n3\n", r"r\.csv:3: 1 values, expected 2"),
    "an open quote": ("r.csv", b'a,b\n1,"2\n', r"r\.csv:2: not CSV"),
    "the header again": ("r.csv", b"a,b\n1,2\na,b\n", r"r\.csv:3: the header again"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_file_is_not_is_told_in_one_line(tmp_path: Path, case: str) -> None:
    name, content, message = WRONG[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        list(read_rows(tmp_path / name))
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, UnicodeError)


def test_a_folder_and_nothing_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a folder, expected a file"):
        list(read_rows(tmp_path))
    with pytest.raises(ValueError, match="no such file"):
        read_text(tmp_path / "nowhere.yaml")


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for name in ("e.jsonl", "e.json", "e.csv", "e.tsv", "e.jsonl.gz"):
        (tmp_path / name).write_bytes(b"")
        assert list(read_rows(tmp_path / name)) == []


def test_a_missing_number_is_null(tmp_path: Path) -> None:
    (tmp_path / "n.jsonl").write_text('{"a": NaN}\n')
    pq.write_table(pa.table({"a": [float("nan")]}), tmp_path / "n.parquet")
    for name in ("n.jsonl", "n.parquet"):
        assert [row for _, row in read_rows(tmp_path / name)] == [{"a": None}]


def test_a_tables_values_become_those_of_json() -> None:
    value = {"t": datetime.date(2026, 1, 2), "n": Decimal("3.0"), "l": ({"x": None},)}
    assert as_json(value) == {"t": "2026-01-02", "n": 3, "l": [{"x": None}]}
    for wrong in (b"bytes", float("inf"), object()):
        with pytest.raises(ValueError, match=r"expected|no number"):
            as_json(wrong)


SOUND = {
    "f.jsonl": LINE * 3,
    "f.json": json.dumps(ROWS[:2]).encode(),
    "f.csv": b'text,label\na,"b\nc"\nd,e\n',
    "f.tsv": b"text\tlabel\na\tb\n",
    "f.jsonl.gz": gzip.compress(LINE * 9, mtime=0),
    "f.parquet": parquet(),
}


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(SOUND)))
def test_changed_bytes_give_rows_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str
) -> None:
    content = bytearray(SOUND[name])
    for _ in range(data.draw(st.integers(1, 4))):
        location = data.draw(st.integers(0, len(content) - 1))
        change: bytes = data.draw(st.binary(max_size=3))
        content[location : location + data.draw(st.integers(0, 3))] = change
        content = content or bytearray(b" ")
    path = tmp_path_factory.mktemp("fuzz") / name
    path.write_bytes(content)
    rows: list[tuple[str, dict[str, Any]]] = []
    try:
        rows = list(read_rows(path))
    except ValueError as error:
        assert not isinstance(error, UnicodeError)  # noqa: PT017
        assert str(error).startswith(str(path))  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
    json.dumps([row for _, row in rows], allow_nan=False).encode()
