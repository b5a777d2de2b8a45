"""What goes out in another form comes back as it was."""

import json
from math import comb
from pathlib import Path

import numpy as np
import pytest

from labeling_ui.argilla import from_argilla, to_argilla
from labeling_ui.export import preference_pairs, write_export
from labeling_ui.label_studio import from_label_studio, to_label_studio
from labeling_ui.store import Store
from reward_models.records import Ranking, RankingTask, read_records
from tests.labeling_ui.examples import small_task

TASKS = [small_task(f"t{i}", 4 + i % 6) for i in range(12)]


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
    row = {
        "id": "r",
        "fields": {"prompt": "p", "response_1": "a", "response_2": "b"},
        "responses": {"ranking": [{"user_id": "u", "status": "submitted", "value": value}]},
    }
    _, (ranking,) = from_argilla([row])
    assert ranking.ranks == {"response_2": 1, "response_1": 2}


def test_there_is_one_pair_for_every_two_responses_that_are_not_tied() -> None:
    for ranking in RANKINGS:
        if ranking.skipped is not None:
            continue
        values = list(ranking.ranks.values())
        ties = sum(comb(values.count(rank), 2) for rank in set(values))
        assert len(preference_pairs(TASKS, [ranking])) == comb(len(values), 2) - ties


def test_pairs_are_in_trls_form_with_the_better_one_chosen() -> None:
    task = RankingTask.from_json(
        {
            "id": "t",
            "prompt": "p",
            "context": "c",
            "responses": [{"id": i, "text": f"text {i}"} for i in "ab"],
        }
    )
    (row,) = preference_pairs([task], [Ranking("t", "x", "human", {"a": 2, "b": 1})])
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("c\n\np", "text b", "text a")
    assert row["margin"] == 1


@pytest.mark.slow  # importing TRL takes longer than all other tests here
def test_trl_takes_the_pairs_for_preferences() -> None:
    data_utils = pytest.importorskip("trl.data_utils")
    row = preference_pairs(TASKS, RANKINGS)[0]
    assert not data_utils.is_conversational(row)
    assert set(data_utils.extract_prompt(row)) >= {"prompt", "chosen", "rejected"}


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
