"""Labels in another format come back as they were."""

import json
from dataclasses import replace
from math import comb
from pathlib import Path

import numpy as np
import pytest

from labeling_ui.formats.argilla import from_argilla, to_argilla
from labeling_ui.formats.files import preference_pairs, write_export
from labeling_ui.formats.label_studio import from_label_studio, to_label_studio
from labeling_ui.store.store import Store
from reward_models.conversations import Turn
from reward_models.records import Ranking, RankingTask, Response, read_records
from stages.data.preferences import load_pairs
from tests.labeling_ui.examples import small_task

HISTORY = (Turn("system", "be brief"), Turn("user", "first?"), Turn("assistant", "one"))
TASKS = [
    replace(small_task(f"t{i}", 4 + i % 6), history=HISTORY if i % 3 == 2 else ())
    for i in range(12)
]


def random_rankings() -> list[Ranking]:
    rng = np.random.default_rng(0)
    made = []
    for task in TASKS:
        ids = [response.id for response in task.responses]
        for name in ("ada", "ben"):
            drawn = rng.integers(1, len(ids) + 1, len(ids)).tolist()
            order = sorted(set(drawn))
            ranks = {i: order.index(rank) + 1 for i, rank in zip(ids, drawn, strict=True)}
            made.append(
                Ranking(
                    task.id,
                    name,
                    "human",
                    ranks,
                    ratings={ids[0]: 7},
                    flags={ids[1]: ["hallucination"]},
                    notes="\u202e ünï\n",
                    seconds=3.5,
                    shown_order=ids[::-1],
                    time="2026-01-01T00:00:00+00:00",
                    extra={"flags_no": {ids[0]: ["sexual"]}, "seeded": True},
                )
            )
    made.append(Ranking("t0", "cyd", "human", {}, skipped="upsetting", time="2026-01-01"))
    return made


RANKINGS = random_rankings()


def as_json(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    parsed: list[dict[str, object]] = json.loads(json.dumps(rows))
    return parsed


def test_label_studio_tasks_come_back_whole() -> None:
    tasks, rankings = from_label_studio(as_json(to_label_studio(TASKS, RANKINGS)))
    assert tasks == TASKS
    assert sorted(rankings, key=str) == sorted(RANKINGS, key=str)


def test_argilla_records_come_back_whole() -> None:
    tasks, rankings = from_argilla(as_json(to_argilla(TASKS, RANKINGS)))
    assert tasks == TASKS
    assert sorted(rankings, key=str) == sorted(RANKINGS, key=str)


def test_a_label_studio_export_made_elsewhere_is_read() -> None:
    row = {
        "id": 7,
        "data": {"prompt": "p", "items": [{"id": i, "body": i} for i in "xyz"]},
        "annotations": [
            {
                "completed_by": 3,
                "lead_time": 2.0,
                "was_cancelled": False,
                "result": [
                    {"type": "ranker", "value": {"ranker": {"_": [], "1": ["z"], "3": ["x", "y"]}}}
                ],
            }
        ],
    }
    _, (ranking,) = from_label_studio([row])
    assert (ranking.annotator, ranking.kind) == ("label-studio-3", "imported")
    assert ranking.ranks == {"z": 1, "x": 2, "y": 2}


def test_an_argilla_record_made_elsewhere_is_read() -> None:
    value = [{"value": "response_2", "rank": 1}, {"value": "response_1", "rank": 3}]
    row = argilla_row({"user_id": "u", "status": "submitted", "value": value})
    _, (ranking,) = from_argilla([row])
    assert ranking.ranks == {"response_2": 1, "response_1": 2}


def argilla_row(*responses: dict[str, object]) -> dict[str, object]:
    fields = {"prompt": "p", "response_1": "a", "response_2": "b"}
    return {"id": "r", "fields": fields, "responses": {"ranking": list(responses)}}


def argilla_response(user: str, status: str, *order: int) -> dict[str, object]:
    value = [{"value": f"response_{i}", "rank": rank} for rank, i in enumerate(order, 1)]
    return {"user_id": user, "status": status, "value": value or None}


def test_argilla_responses_in_another_order_stay_those_of_their_annotators() -> None:
    rows = as_json(to_argilla(TASKS, RANKINGS))
    for row in rows:
        row["responses"]["ranking"].reverse()  # type: ignore[index]
    assert sorted(from_argilla(rows)[1], key=str) == sorted(RANKINGS, key=str)


def test_what_was_made_in_argilla_later_is_nobody_elses() -> None:
    (row,) = as_json(to_argilla(TASKS[:1], [RANKINGS[1]]))
    value = [{"value": f"response_{i}", "rank": 5 - i} for i in range(1, 5)]
    new = {"user_id": "new", "status": "submitted", "value": value}
    row["responses"]["ranking"].insert(0, new)  # type: ignore[index]
    _, (theirs, ours) = from_argilla([row])
    assert ours == RANKINGS[1]
    assert (theirs.annotator, theirs.kind, theirs.notes) == ("new", "imported", None)
    assert theirs.ranks == {"a": 4, "b": 3, "c": 2, "d": 1}


def test_a_skip_that_was_submitted_in_argilla_is_a_ranking_now() -> None:
    skip = Ranking("t0", "cyd", "human", {}, skipped="upsetting")
    (row,) = as_json(to_argilla(TASKS[:1], [skip]))
    value = [{"value": f"response_{i}", "rank": i} for i in range(1, 5)]
    row["responses"]["ranking"][0] |= {"status": "submitted", "value": value}  # type: ignore[index]
    _, (ranking,) = from_argilla([row])
    assert (ranking.annotator, ranking.skipped, len(ranking.ranks)) == ("cyd", None, 4)


def test_drafts_are_no_answers_and_discarded_responses_are_skips() -> None:
    row = argilla_row(
        argilla_response("a", "draft", 1),
        argilla_response("b", "submitted", 2, 1),
        argilla_response("c", "discarded", 1, 2),
        argilla_response("d", "discarded"),
        argilla_response("e", "pending"),
    )
    _, rankings = from_argilla([row])
    assert [(one.annotator, one.ranks, one.skipped) for one in rankings] == [
        ("b", {"response_2": 1, "response_1": 2}, None),
        ("c", {}, "discarded"),
        ("d", {}, "discarded"),
    ]


def test_an_annotator_who_ranks_a_task_twice_is_refused() -> None:
    row = argilla_row(
        argilla_response("a", "submitted", 1, 2), argilla_response("a", "submitted", 2, 1)
    )
    with pytest.raises(ValueError, match="'a' ranks task 'r' twice"):
        from_argilla([row])


def annotation(by: object, *order: str, cancelled: bool = False) -> dict[str, object]:
    ranker = {str(rank): [name] for rank, name in enumerate(order, 1)}
    result = [{"type": "ranker", "value": {"ranker": ranker}}] if order else []
    return {"completed_by": by, "was_cancelled": cancelled, "result": result}


def test_people_of_one_first_name_are_two_and_cancelled_annotations_are_skips() -> None:
    row = {
        "id": 7,
        "data": {"prompt": "p", "items": [{"id": i, "body": str(i)} for i in (1, 2)]},
        "annotations": [
            annotation({"id": 3, "first_name": "Ben", "email": "b@x"}, "1", "2"),
            annotation({"id": 4, "first_name": "Ben", "email": "c@x"}, "2", "1"),
            annotation(5, cancelled=True),
            annotation(6, "1", "2", cancelled=True),
            annotation(6, "2", "1"),
        ],
    }
    _, rankings = from_label_studio([row])
    assert [(one.annotator, list(one.ranks), one.skipped) for one in rankings] == [
        ("label-studio-3", ["1", "2"], None),
        ("label-studio-4", ["2", "1"], None),
        ("label-studio-5", [], "skipped"),
        ("label-studio-6", ["2", "1"], None),
    ]


def test_turns_made_elsewhere_are_read() -> None:
    turns = [turn.to_json() for turn in (*HISTORY, Turn("user", "p"))]
    row = argilla_row()
    row["fields"]["prompt"] = turns  # type: ignore[index]
    items = [{"id": i, "body": i} for i in "ab"]
    data = {"history": turns[:-1], "prompt": "p", "items": items}
    for (task,), _ in (from_argilla([row]), from_label_studio([{"id": 1, "data": data}])):
        assert (task.history, task.prompt) == (HISTORY, "p")


def test_pairs_of_a_conversation_are_read_back_as_its_turns(tmp_path: Path) -> None:
    rows = preference_pairs(TASKS[2:3], [one for one in RANKINGS if one.task == "t2"])
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks, _ = load_pairs(tmp_path / "p.jsonl")
    assert {(task.history, task.prompt) for task in tasks} == {(HISTORY, TASKS[2].prompt)}


def test_there_is_one_pair_for_every_two_responses_that_are_not_tied() -> None:
    for ranking in RANKINGS:
        if ranking.skipped is not None:
            continue
        values = list(ranking.ranks.values())
        ties = sum(comb(values.count(rank), 2) for rank in set(values))
        assert len(preference_pairs(TASKS, [ranking])) == comb(len(values), 2) - ties


def test_pairs_are_in_trls_form_with_the_better_one_chosen() -> None:
    responses = tuple(Response(i, f"text {i}", "m", {}) for i in "ab")
    task = RankingTask("t", "p", responses, context="c")
    (row,) = preference_pairs([task], [Ranking("t", "x", "human", {"a": 2, "b": 1})])
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("c\n\np", "text b", "text a")
    assert row["margin"] == 1


@pytest.mark.slow  # importing TRL takes longer than all other tests here
def test_trl_takes_the_pairs_for_preferences() -> None:
    data_utils = pytest.importorskip("trl.data_utils")
    plain = preference_pairs([small_task("t0")], [RANKINGS[0]])[0]
    spoken = preference_pairs(TASKS, RANKINGS)[0]
    for row, is_conversational in ((plain, False), (spoken, True)):
        assert data_utils.is_conversational(row) == is_conversational
        assert set(data_utils.extract_prompt(row)) >= {"prompt", "chosen", "rejected"}


def test_pairs_have_one_form_so_that_a_column_has_one_type() -> None:
    rows = preference_pairs(TASKS, RANKINGS)
    assert {type(row[name]) for row in rows for name in ("prompt", "chosen", "rejected")} == {list}


def test_json_lines_through_the_store_are_the_same_lines(store: Store, tmp_path: Path) -> None:
    store.add_tasks(TASKS, overlap=2)
    store.submit_all(RANKINGS)
    tasks_path, rankings_path = write_export(store, tmp_path / "one", "jsonl")
    again = Store(tmp_path / "again.sqlite")
    again.add_tasks(read_records(tasks_path, RankingTask))
    again.submit_all(read_records(rankings_path, Ranking))
    for one, other in zip(
        (tasks_path, rankings_path), write_export(again, tmp_path / "two", "jsonl"), strict=True
    ):
        assert one.read_bytes() == other.read_bytes()
    assert read_records(rankings_path, Ranking) == RANKINGS
