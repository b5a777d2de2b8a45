"""A record's values are checked where they come in: names become text, the rest is refused."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling_ui.store.records import TextTask, WritingTask
from pipeline.evaluation.samples.records import Completion, completion_from
from reward_models.records import (
    Demonstration,
    Prompt,
    Ranking,
    RankingTask,
    Record,
    read_rankings,
    read_records,
    read_tasks,
)

PAIR = [{"id": "a", "text": "A"}, {"id": "b", "text": "B"}]
RANKING = {"task": "t", "annotator": "u", "kind": "human", "ranks": {"a": 1, "b": 2}}
SOUND: dict[type[Record], dict[str, Any]] = {
    Demonstration: {
        "prompt": "p",
        "response": "r",
        "id": "1",
        "user": "u",
        "source": "s",
        "context": "c",
        "category": "k",
    },
    Prompt: {
        "prompt": "p",
        "id": "1",
        "user": "u",
        "context": "c",
        "category": "k",
        "answerable": True,
    },
    RankingTask: {"id": "1", "prompt": "p", "responses": PAIR, "context": "c", "category": "k"},
    Ranking: {
        **RANKING,
        "ratings": {"a": 7},
        "flags": {"a": ["toxic"]},
        "notes": "n",
        "seconds": 1.5,
        "shown_order": ["a", "b"],
        "time": "2026",
        "flags_no": {"b": ["x"]},
    },
    TextTask: {"id": "1", "text": "t", "prompt": "p", "model": "m", "context": "c"},
    WritingTask: {"id": "1", "prompt": "p", "use_case": "u", "context": "c", "category": "k"},
    Completion: {
        "id": "1",
        "model": "m",
        "prompt": "p",
        "completion": "c",
        "k": 0,
        "scores": {"s": {"m": 0.5}},
        "context": "c",
    },
}
OPTIONAL = [
    (kind, name)
    for kind, row in SOUND.items()
    for name in row
    if name not in (*kind.required, "scores", "k")
]


def made(kind: type[Record], row: dict[str, Any]) -> Record:
    return completion_from(row) if kind is Completion else kind.from_json(row)


@pytest.mark.parametrize(("kind", "name"), OPTIONAL)
def test_null_and_blank_mean_not_given(kind: type[Record], name: str) -> None:
    without = made(kind, {key: value for key, value in SOUND[kind].items() if key != name})
    for absent in (None, ""):
        given = made(kind, {**SOUND[kind], name: absent})
        assert given.to_json() | {"flags_no": {}} == without.to_json() | {"flags_no": {}}


@pytest.mark.parametrize("kind", SOUND)
def test_whole_numbers_are_names(kind: type[Record]) -> None:
    named = [
        n
        for n in ("id", "user", "task", "annotator", "source", "category", "model")
        if n in SOUND[kind]
    ]
    record = made(kind, {**SOUND[kind], **dict.fromkeys(named, 7)})
    assert {getattr(record, name) for name in named} == {"7"}
    for name in named:
        for wrong in (True, 1.5, ["x"], {"x": 1}):
            with pytest.raises(ValueError, match=f"'{name}' is .*expected a string"):
                made(kind, {**SOUND[kind], name: wrong})


def test_integer_response_ids_are_those_of_a_rankings_keys() -> None:
    task = RankingTask.from_json(
        {"id": 3, "prompt": "p", "responses": [{"id": 1, "text": "A"}, {"id": 2, "text": "B"}]}
    )
    ranking = Ranking.from_json(
        {**RANKING, "task": 3, "ranks": {"1": 2, "2": 1}, "shown_order": [2, 1]}
    )
    ranking.check_against(task)
    assert ranking.shown_order == ["2", "1"]


@pytest.mark.parametrize("absent", [None, "", " ", False])
def test_a_ranking_without_a_reason_is_not_skipped(absent: object) -> None:
    ranking = Ranking.from_json({**RANKING, "skipped": absent, "ratings": None, "flags": None})
    assert ranking == Ranking.from_json(RANKING)


def test_only_a_skipped_ranking_may_have_no_ranks() -> None:
    assert Ranking.from_json({**RANKING, "ranks": None, "skipped": "upsetting"}).ranks == {}
    assert Ranking.from_json({**RANKING, "ranks": None, "skipped": True}).skipped == "skipped"
    with pytest.raises(ValueError, match="'ranks' is null, and the ranking is not skipped"):
        Ranking.from_json({**RANKING, "ranks": None})


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (Ranking, {"ranks": {"a": True, "b": 2}}, "rank of response 'a' is True"),
        (Ranking, {"ranks": {"a": 1.0, "b": 2}}, "rank of response 'a' is 1.0"),
        (Ranking, {"ranks": ["a", "b"]}, "'ranks' is list, expected an object"),
        (Ranking, {"ratings": {"a": True}}, "rating of response 'a' is True, expected 1 to 7"),
        (Ranking, {"ratings": {"a": 8}}, "rating of response 'a' is 8, expected 1 to 7"),
        (Ranking, {"flags": {"a": "toxic"}}, "'flags' of response 'a' is str, expected a list"),
        (Ranking, {"seconds": "soon"}, "'seconds' is 'soon', expected a number"),
        (RankingTask, {"responses": "x"}, "not JSON"),
        (RankingTask, {"responses": {"a": 1}}, "'responses' is dict, expected a list"),
        (RankingTask, {"responses": ["x", "y"]}, "a response is str"),
        (RankingTask, {"responses": [*PAIR, PAIR[0]]}, "names a response id twice"),
        (RankingTask, {"responses": [PAIR[0], {"id": "b", "text": None}]}, "'text' is null"),
        (Prompt, {"answerable": "maybe"}, "'answerable' is 'maybe', expected true or false"),
        (Prompt, {"history": [["a", "b"]]}, "expected earlier turns in 'messages'"),
        (Completion, {"scores": {"s": 3}}, "'scores of s' is int, expected an object"),
        (Completion, {"scores": {"s": {"m": "x"}}}, "'m of s' is 'x', expected a number"),
        (Completion, {"k": 1.5}, "'k' is 1.5, expected a whole number"),
    ],
)
def test_a_wrong_value_is_named(kind: type[Record], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(kind, {**SOUND[kind], **change})


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from(['{"a": 1}', "[1]", "true", "[", '[{"role": "user", "content": "x"}]']),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "text", "a", "b", "role", "content"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), kind=st.sampled_from(list(SOUND)))
def test_any_row_is_a_record_or_a_value_error(data: st.DataObject, kind: type[Record]) -> None:
    names = st.sampled_from([*SOUND[kind], "messages", "conversations", "history", "flags_no"])
    row = SOUND[kind] | data.draw(st.dictionaries(names, JSON, max_size=3))
    try:
        record = made(kind, row)
    except ValueError:
        return
    written = json.loads(json.dumps(record.to_json(), allow_nan=False))
    assert made(kind, written).to_json() == record.to_json()


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_task_that_stands_twice_is_refused_with_both_places(tmp_path: Path) -> None:
    task = SOUND[RankingTask]
    path = write(tmp_path / "t.jsonl", task, {**task, "id": 2}, {**task, "prompt": "another"})
    with pytest.raises(ValueError, match=r"t\.jsonl:3: task '1' .* at .*t\.jsonl:1 already"):
        read_tasks(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "u"}, r"r\.jsonl:2: no task 'u' among the 1 tasks"),
        ({"ranks": {"a": 1, "c": 2}}, r"r\.jsonl:2: ranks name \['a', 'c'\]"),
        ({"ranks": {"a": 1, "b": None}}, r"r\.jsonl:2: 2 responses but 1 ranks"),
        ({}, r"r\.jsonl:2: the ranking of task 't' by 'u' again; it is at .*:1"),
    ],
)
def test_rankings_are_matched_by_what_they_name(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    tasks = [RankingTask.from_json({**SOUND[RankingTask], "id": "t"})]
    first = {**RANKING, "annotator": "v"} if "annotator" in change else RANKING
    with pytest.raises(ValueError, match=message):
        read_rankings(write(tmp_path / "r.jsonl", first, {**RANKING, **change}), tasks)


def test_rankings_of_a_table_have_only_their_own_responses(tmp_path: Path) -> None:
    """A table gives every row the keys of all rows, null where a row has none."""
    rows = [{**RANKING, "task": name, "ranks": {f"{name}-a": 1, f"{name}-b": 2}} for name in "xy"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    records = read_records(tmp_path / "r.parquet", Ranking)
    assert [one.to_json()["ranks"] for one in records] == [row["ranks"] for row in rows]
