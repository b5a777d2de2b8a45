"""Rows of a file in any usual format, each with its location, and checks of their values.

    .jsonl .ndjson .json    an object a line, or one list of objects
    .csv .tsv               a header, then a row a line; every value is a text, of any length
    .parquet                a table
    .jsonl.gz, .csv.gz ...  the text formats gzipped

A name with another ending is read as JSON. A file whose content is not what its name says, such as
a Git LFS pointer, is refused. Text is UTF-8, with or without a byte order mark. `NaN` is how tables
write a missing value and is read as null; infinity is refused. Every mistake is one ValueError:
`file:line: what it is, what was expected`. Values may be anything that JSON can hold.
"""

import csv
import datetime
import gzip
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from itertools import chain
from math import isfinite, isnan
from pathlib import Path
from typing import Any, TypeVar

Row = dict[str, Any]
T = TypeVar("T")
ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_LINES = ".jsonl, .json, .csv or .tsv, perhaps with .gz, or .parquet"
_SIGNATURES = {  # a file's first bytes, its kind, and what was expected
    b"version https://git-lfs": ("a Git LFS pointer, not the data", "the file (git lfs pull)"),
    b"PAR1": ("Parquet by its content", "a name that ends in .parquet"),
    b"\x1f\x8b": ("gzipped by its content", "a name that ends in .gz"),
    b"ARROW1": ("Arrow by its content", "Parquet or text"),
    b"PK\x03\x04": ("a ZIP archive or a spreadsheet", f"a file that ends in {_LINES}"),
    b"BZh": ("compressed by bzip2", "gzip, or no compression"),
    b"\xfd7zXZ": ("compressed by xz", "gzip, or no compression"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "gzip, or no compression"),
    b"SQLite format 3": ("an SQLite database", f"a file that ends in {_LINES}"),
    b"\xff\xfe": ("UTF-16 by its byte order mark", "UTF-8"),
    b"\xfe\xff": ("UTF-16 by its byte order mark", "UTF-8"),
    b"<!DOCTYPE html": ("a web page", "the data"),
}
_BOM = b"\xef\xbb\xbf"
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # the escape of half a surrogate pair
_CELL = 2**31 - 1  # characters of a CSV cell


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield each row with its location."""
    match ending(path):
        case ".parquet":
            yield from _parquet_rows(path)
        case ".csv" | ".tsv" as kind:
            yield from csv_rows(path, delimiter="\t" if kind == ".tsv" else ",")
        case _:
            yield from _json_rows(path)


def ending(path: Path) -> str:
    """Return the ending that names the format, in lower case, without `.gz`."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def read_jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield line number, from 1, and object of each line; for files of this project."""
    for number, line in text_lines(path):
        if line.strip():
            yield number, _object_of(line.rstrip(), f"{path}:{number}")


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line number, from 1, and line, its end included."""
    zipped = path.suffix.lower() == ".gz"
    _check_begin(path, zipped=zipped)
    try:
        with gzip.open(path) if zipped else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if number == 1 and zipped:
                    _check_signature(path, line[:32])
                text = line.removeprefix(_BOM) if number == 1 else line
                yield number, _decoded(text, f"{path}:{number}")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: gzip that is cut or damaged ({error})") from None


def read_text(path: Path) -> str:
    """Return the whole text of a file; ValueError in one line where there is none."""
    return "".join(line for _, line in text_lines(path))


def csv_rows(path: Path, *, delimiter: str = ",", quoted: bool = True) -> Iterator[tuple[str, Row]]:
    """Yield each row of a table, by the names in its header, with its location."""
    lines = _csv_lines(path, delimiter, quoted=quoted)
    _, header = next(lines, (1, []))
    if header and header[0].startswith(("{", "[{")):
        raise ValueError(f"{path}:1: JSON by its content; expected a header, or a name in .jsonl")
    if len(set(header)) != len(header):
        raise ValueError(f"{path}:1: a column name occurs twice in {header}")
    for line, values in lines:
        if values == header:
            raise ValueError(f"{path}:{line}: the header again; expected a row")
        if len(values) == len(header):
            yield f"{path}:{line}", dict(zip(header, values, strict=True))
        elif values:
            raise ValueError(f"{path}:{line}: {len(values)} values, expected {len(header)}")


def _csv_lines(path: Path, delimiter: str, *, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(_CELL)
    parts = (part for _, line in text_lines(path) for part in re.split(r"(?<=\r)(?!\n)", line))
    reader = csv.reader(
        parts,
        delimiter=delimiter,
        strict=quoted,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
    )
    try:
        for values in reader:
            yield reader.line_num, values
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: not CSV ({error})") from None


def as_json(value: Any) -> Any:
    """Return a value of a table as JSON has it: times as text, missing numbers as null.

    Raises ValueError for what JSON cannot hold.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            if isnan(value):
                return None
            if not isfinite(value):
                raise ValueError(f"{value} is no number that JSON can hold")
            return value
        case Mapping():
            return {str(name): as_json(one) for name, one in value.items()}
        case list() | tuple():
            return [as_json(one) for one in value]
        case datetime.date() | datetime.time():
            return value.isoformat()
        case Decimal():
            return as_json(int(value) if value == value.to_integral_value() else float(value))
    raise ValueError(f"a value is {type(value).__name__}, expected a text, a number or a list")


def row_as_json(where: str, row: Mapping[str, Any]) -> Row:
    """Return the row of a table as JSON would have it."""
    values: Row = {}
    for name, value in row.items():
        try:
            values[name] = as_json(value)
        except (ValueError, ArithmeticError) as error:
            raise ValueError(f"{where}: column '{name}': {error}") from None
    return values


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa  # takes long; most files are text
    import pyarrow.parquet as pq

    if path.suffix.lower() == ".gz":
        raise ValueError(f"{path}: gzipped Parquet; expected .parquet, which is compressed itself")
    _check_begin(path, zipped=False)
    done = 0
    try:
        with pq.ParquetFile(path) as table:
            rows = chain.from_iterable(b.to_pylist() for b in table.iter_batches(batch_size=1024))
            for row in rows:
                done += 1
                yield f"{path}, row {done}", row_as_json(f"{path}, row {done}", row)
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        line = (str(error).strip().splitlines() or ["damaged"])[0]
        raise ValueError(f"{path}: not Parquet, or damaged after row {done} ({line})") from None


def _json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """An object a line, or one list, or in a `.json` file one object over several lines."""
    lines = text_lines(path)
    blank = []
    for first in lines:
        if first[1].strip():
            break
        blank.append(first[1])
    else:
        return
    line, rest = first[1], chain([first], lines)
    if line.lstrip().startswith("["):
        yield from _list_rows(path, "".join(chain(blank, (one for _, one in rest))))
    elif ending(path) == ".json" and line.strip() == "{":
        yield str(path), _object_of("".join(one for _, one in rest), str(path))
    elif ending(path) not in ENDINGS and not line.lstrip().startswith("{"):
        raise ValueError(f"{path}: not JSON, and of an unknown kind; expected a name in {_LINES}")
    else:
        yield from (
            (f"{path}:{number}", _object_of(line.rstrip(), f"{path}:{number}"))
            for number, line in rest
            if line.strip()
        )


def _list_rows(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    rows = _parsed(text, str(path))
    if not isinstance(rows, list):
        raise ValueError(f"{path}: {type(rows).__name__}, expected a list of objects")
    for number, row in enumerate(rows, 1):
        where = f"{path}, entry {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{where}: {type(row).__name__}, expected a JSON object")
        yield where, row


def _object_of(text: str, where: str) -> Row:
    row = _parsed(text, where)
    if not isinstance(row, dict):
        raise ValueError(f"{where}: {type(row).__name__}, expected a JSON object")
    return row


def json_value(text: str) -> Any:
    """Return the value of a JSON text; ValueError in one line where it is none."""
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON that can be read ({error})") from None


def whole_characters(value: T) -> T:
    """Return the value; ValueError where a text in it has half of a surrogate pair."""
    half = re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False))
    if half is not None:
        raise ValueError(
            f"\\u{ord(half[0]):04x} is half of a surrogate pair, which is no character; expected "
            "text that UTF-8 can hold"
        )
    return value


def _parsed(text: str, where: str) -> Any:
    try:
        value = json_value(text)
        return whole_characters(value) if _HALF.search(text) else value
    except ValueError as error:
        cause = error.__cause__
        number = cause.lineno if isinstance(cause, json.JSONDecodeError) else 1
        line = f":{number}" if number > 1 else ""
        raise ValueError(f"{where}{line}: {error}") from None


def _unique(pairs: Iterable[tuple[str, Any]]) -> Row:
    row: Row = {}
    for name, value in pairs:
        if name in row:
            raise ValueError(f"key '{name}' occurs twice in one object")
        row[name] = value
    return row


def _finite(digits: str) -> float:
    value = float(digits)
    if not isfinite(value):
        raise ValueError(f"{digits} is beyond what a number can hold")
    return value


def _missing(name: str) -> None:
    if name != "NaN":
        raise ValueError(f"{name} is no number that JSON can hold")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_missing)


def _decoded(line: bytes, where: str) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise ValueError(
            f"{where}: not UTF-8 (byte 0x{byte:02x} at {error.start + 1}); expected UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError(f"{where}: a NUL byte; expected text")
    return text


def _check_begin(path: Path, *, zipped: bool) -> None:
    """Raise ValueError unless there is a file that begins as its name says."""
    if path.is_dir():
        raise ValueError(f"{path}: a folder, expected a file")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open("rb") as file:
        begin = file.read(32)
    if zipped and begin and not begin.startswith(b"\x1f\x8b"):
        _check_signature(path, begin)
        raise ValueError(f"{path}: not gzipped, though its name says so")
    if not zipped and not (begin.startswith(b"PAR1") and ending(path) == ".parquet"):
        _check_signature(path, begin)


def _check_signature(path: Path, begin: bytes) -> None:
    for signature, (what, expected) in _SIGNATURES.items():
        if begin.startswith(signature):
            raise ValueError(f"{path}: {what}; expected {expected}")


_FLAGS = {"true": True, "false": False}


def required_text(name: str, value: object, *, empty: bool = False) -> str:
    """Return the text; ValueError where it is none or, unless `empty`, blank."""
    if not isinstance(value, str):
        raise ValueError(f"'{name}' is {_kind(value)}, expected a string")
    if not empty and not value.strip():
        raise ValueError(f"'{name}' is empty")
    return value


def optional_text(name: str, value: object) -> str | None:
    """Return the text; None where it is null or blank."""
    if value is None:
        return None
    text = required_text(name, value, empty=True)
    return text if text.strip() else None


def required_name(name: str, value: object) -> str:
    """Return the name; a whole number as text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return required_text(name, value)


def optional_name(name: str, value: object) -> str | None:
    """Return the name; None where it is null or blank."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return required_name(name, value)


def flag(name: str, value: object) -> bool | None:
    """Return a boolean, perhaps given as text; None where it is null or blank."""
    if value is None or isinstance(value, bool):
        return value
    text = value.strip().lower() if isinstance(value, str) else None
    if text is None or text not in {*_FLAGS, ""}:
        raise ValueError(f"'{name}' is {value!r:.40}, expected true or false")
    return _FLAGS.get(text)


def number(name: str, value: object) -> float | None:
    """Return a finite number, perhaps given as text; None where it is null or blank."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        result = float(value) if isinstance(value, str) else value
    except ValueError:
        result = None
    if isinstance(result, bool) or not isinstance(result, int | float) or not math.isfinite(result):
        raise ValueError(f"'{name}' is {value!r:.40}, expected a number")
    return result


def whole_number(name: str, value: object) -> int:
    """Return a whole number, perhaps given as text."""
    text = value.strip() if isinstance(value, str) else value
    if isinstance(text, str) and text.removeprefix("-").isdecimal() and len(text) < 20:
        return int(text)
    if isinstance(text, bool) or not isinstance(text, int):
        raise ValueError(f"'{name}' is {value!r:.40}, expected a whole number")
    return text


def mapping(name: str, value: object) -> Mapping[str, Any]:
    """Return an object, perhaps given as JSON text; empty where it is null or blank."""
    if isinstance(value, str) and value.strip():
        value = json_value(value)
    if value in (None, ""):
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"'{name}' is {_kind(value)}, expected an object")
    return value


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
