"""Labels go into a store and out of it by commands, in every form, and stay what they are."""

import json
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from itertools import combinations
from pathlib import Path

import krippendorff
import numpy as np
import pytest
from scipy.stats import kendalltau
from typer.testing import CliRunner

from labeling_ui.store.accounts import Accounts
from labeling_ui.store.store import Store
from labeling_ui.tasks.assignment import Assignment
from pipeline.cli.app import app
from reward_models.atomic_files import write_jsonl
from reward_models.records import Ranking, RankingTask, Response, read_records

SHARED = Path(__file__).parents[4] / "shared/data/train"
SQUALITY = SHARED / "squality/human-eval-all-responses.jsonl"
QA_FEEDBACK = SHARED / "qa-feedback/dev_feedback.json"


def task(name: str) -> RankingTask:
    responses = tuple(Response(i, f"text {i} ünï 🙂", "m", {"k": 1}) for i in "abcd")
    return RankingTask(name, f"prompt of {name}", responses, extra={"kept": [1]})


def ranking(name: str, annotator: str, order: str, **more: object) -> Ranking:
    ranks = {i: rank for rank, i in enumerate(order, 1)}
    return Ranking(name, annotator, "human", ranks, time="2026-01-02", **more)  # type: ignore[arg-type]


TASKS = [task(f"t{i}") for i in range(3)]
RANKINGS = [
    ranking("t0", "ada", "cabd", shown_order=list("dcba"), seconds=2.5),
    ranking("t0", "ben", "abcd", flags={"a": ["toxic"]}, extra={"flags_no": {"b": ["toxic"]}}),
    ranking("t2", "ada", "dbca", notes="‮ note"),
    Ranking("t1", "ada", "human", {}, skipped="upsetting", time="2026-01-02"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    made.mkdir()
    write_jsonl(made / "tasks.jsonl", (task.to_json() for task in TASKS))
    write_jsonl(made / "rankings.jsonl", (ranking.to_json() for ranking in RANKINGS))
    return made


def rlhf(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.stderr
    return done.stdout


def refused(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 2
    return done.stderr


def test_what_is_imported_is_exported_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "labels.sqlite"
    rlhf("import", folder, "--store", store, "--overlap", 2)
    rlhf("export", store, "--out", tmp_path / "out")
    for name in ("tasks.jsonl", "rankings.jsonl"):
        assert (folder / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@pytest.mark.parametrize(
    ("form", "name"),
    [("label-studio", "label_studio.json"), ("argilla", "argilla.jsonl")],
)
def test_the_forms_of_others_come_back_as_they_went(
    folder: Path, tmp_path: Path, form: str, name: str
) -> None:
    rlhf("import", folder, "--store", tmp_path / "1.sqlite")
    rlhf("export", tmp_path / "1.sqlite", "--out", tmp_path / "theirs", "--format", form)
    there = tmp_path / "theirs" / name
    rlhf("import", there, "--store", tmp_path / "2.sqlite", "--format", form)
    rlhf("export", tmp_path / "2.sqlite", "--out", tmp_path / "ours")
    assert (tmp_path / "ours/tasks.jsonl").read_bytes() == (folder / "tasks.jsonl").read_bytes()
    lines = [
        sorted((each / "rankings.jsonl").read_text().splitlines())
        for each in (tmp_path / "ours", folder)
    ]
    assert lines[0] == lines[1]


def test_importing_again_changes_nothing(folder: Path, tmp_path: Path) -> None:
    for _ in range(2):
        rlhf("import", folder, "--store", tmp_path / "labels.sqlite")
    with closing(Store(tmp_path / "labels.sqlite")) as store:
        assert len(store.rankings(skipped=True)) == len(RANKINGS)
        assert len(store.tasks()) == len(TASKS)


def test_a_priority_holds_for_tasks_that_are_there_already(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "labels.sqlite"
    rlhf("import", folder / "tasks.jsonl", "--store", store)
    again = ["import", str(folder / "tasks.jsonl"), "--store", str(store)]
    done = CliRunner().invoke(app, [*again, "--priority", "5"])
    assert "3 tasks that were there have priority 5 now" in done.stderr
    rlhf(*again)
    with sqlite3.connect(store) as connection:
        assert connection.execute("SELECT DISTINCT priority FROM tasks").fetchall() == [(5,)]


def test_people_are_managed_by_commands(folder: Path, tmp_path: Path) -> None:
    where = tmp_path / "labels.sqlite"
    rlhf("import", folder, "--store", where)
    with closing(Store(where)) as store:
        Accounts(store).add("olga", "owner", "correct horse")
        Assignment(store, rng=random.Random(0)).next_task("cyd")
        password = rlhf("accounts", where, "olga", "--reset-password").split("'")[1]
        assert Accounts(store).sign_in("olga", password)
        assert "closed" in rlhf("accounts", where, "olga", "--close")
        assert "closed" not in rlhf("accounts", where, "olga", "--open")
        assert rlhf("accounts", where).split() == ["olga", "owner"]
        assert rlhf("leases", where).startswith("cyd ")
        assert "1 tasks of cyd" in rlhf("leases", where, "--release", "cyd")
        assert rlhf("leases", where) == "nobody holds a task\n"
        assert "2 answers of ada" in rlhf("withdraw", where, "ada")
        assert {one.annotator for one in store.rankings()} == {"ben"}
        assert "2 answers of ada are back" in rlhf("withdraw", where, "ada", "--restore")
    assert "'ada' holds no task" in refused("leases", where, "--release", "ada")
    assert "there is no account 'eve'" in refused("accounts", where, "eve", "--close")
    assert "no account is named" in refused("accounts", where, "--close")


@pytest.mark.parametrize(
    ("form", "line", "why"),
    [
        ("label-studio", '{"id": 1}', "x.jsonl:1: key 'data' is missing"),
        ("argilla", '{"id": "a", "fields": {}, "responses": {}}', "x.jsonl:1: key 'prompt'"),
        ("jsonl", '{"id": "a", "prompt": "p", "responses": []}', "x.jsonl:1: task 'a' has 0"),
    ],
)
def test_a_wrong_file_is_told_by_its_line(tmp_path: Path, form: str, line: str, why: str) -> None:
    (tmp_path / "x.jsonl").write_text(line + "\n")
    store = tmp_path / "s.sqlite"
    assert why in refused("import", tmp_path / "x.jsonl", "--store", store, "--format", form)


def test_trl_pairs_are_loaded_by_datasets_as_preferences(folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rlhf("import", folder, "--store", tmp_path / "s.sqlite")
    rlhf("export", tmp_path / "s.sqlite", "--out", tmp_path / "trl", "--format", "trl")
    loaded = datasets.load_dataset(
        "json", data_files=str(tmp_path / "trl/preferences.jsonl"), cache_dir=str(tmp_path / "c")
    )["train"]
    assert len(loaded) == 3 * 6
    for column in ("prompt", "chosen", "rejected"):
        assert loaded.features[column].dtype == "string"
    assert min(loaded["margin"]) == 1


def test_the_log_tells_who_did_what(folder: Path, tmp_path: Path) -> None:
    rlhf("import", folder, "--store", tmp_path / "s.sqlite")
    rlhf("export", tmp_path / "s.sqlite", "--out", tmp_path / "log", "--format", "audit")
    lines = (tmp_path / "log/events.jsonl").read_text().splitlines()
    events = [(row["actor"], row["kind"], row["task"]) for row in map(json.loads, lines)]
    assert ("store", "tasks added", None) in events
    assert ("ada", "skip", "t1") in events
    assert ("ben", "submit", "t0") in events


def test_a_backup_is_made_by_command_while_the_store_is_in_use(folder: Path, tmp_path: Path):
    rlhf("import", folder, "--store", tmp_path / "run/rankings.sqlite")
    (tmp_path / "own.yaml").write_text("name: own\nlabeling: {kind: human}\n")
    command = ("label", tmp_path / "own.yaml", "--out", tmp_path / "run", "--backup")
    with closing(Store(tmp_path / "run/rankings.sqlite")) as store:
        rlhf(*command, tmp_path / "copy.sqlite")
        with closing(Store(tmp_path / "copy.sqlite")) as copy:
            assert copy.rankings(skipped=True) == store.rankings(skipped=True)
    with closing(sqlite3.connect(tmp_path / "copy.sqlite")) as opened:
        assert opened.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert "is there already" in refused(*command, tmp_path / "copy.sqlite")
    other = ("label", tmp_path / "own.yaml", "--set", "labeling={kind: simulated}", "--backup", "x")
    assert "no people's store" in refused(*other)


def test_agreement_is_told_of_a_file_and_of_a_store_alike(folder: Path, tmp_path: Path) -> None:
    rlhf("import", folder, "--store", tmp_path / "s.sqlite")
    rlhf("export", tmp_path / "s.sqlite", "--out", tmp_path / "out")
    output = rlhf("agreement", tmp_path / "s.sqlite")
    assert output == rlhf("agreement", tmp_path / "out/rankings.jsonl")
    assert "66.7%" in output  # c before a and b against a before b before c: 4 of 6 pairs


def imported(tmp_path: Path, path: Path, form: str) -> list[Ranking]:
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside the checkout")
    rlhf("import", path, "--store", tmp_path / "s.sqlite", "--format", form, "--overlap", 3)
    rlhf("export", tmp_path / "s.sqlite", "--out", tmp_path / "out")
    return read_records(tmp_path / "out/rankings.jsonl", Ranking)


def test_the_figures_of_squality_are_those_of_scipy_and_krippendorff(tmp_path: Path):
    rankings = imported(tmp_path, SQUALITY, "squality")
    assert len(rankings) == 300
    by_task: dict[str, list[Ranking]] = {}
    for one in rankings:
        by_task.setdefault(one.task, []).append(one)
    same, taus = [], []
    for given in by_task.values():
        for one, other in combinations(given, 2):
            names = sorted(one.ranks)
            taus.append(kendalltau(*([r.ranks[n] for n in names] for r in (one, other))).statistic)
            same += [
                (one.ranks[a] < one.ranks[b]) == (other.ranks[a] < other.ranks[b])
                for a, b in combinations(names, 2)
            ]
    people = sorted({one.annotator for one in rankings})
    units = [(name, response) for name, given in by_task.items() for response in given[0].ranks]
    column = {unit: i for i, unit in enumerate(units)}
    table = np.full((len(people), len(units)), np.nan)
    for one in rankings:
        for response, rank in one.ranks.items():
            table[people.index(one.annotator), column[one.task, response]] = rank
    alpha = krippendorff.alpha(table, level_of_measurement="ordinal")
    values = {line[:34].strip(): line[34:] for line in _lines(tmp_path)}
    assert values["agreement over pairs"].startswith(f"{np.mean(same):.1%} ")
    assert values["Kendall tau-b, mean"] == f"{np.mean(taus):.3f}"
    assert values["Krippendorff alpha of ranks"].startswith(f"{alpha:.3f} ")


def _lines(tmp_path: Path) -> list[str]:
    return rlhf("agreement", tmp_path / "s.sqlite").splitlines()


def test_qa_feedback_gives_its_untied_pairs(tmp_path: Path) -> None:
    rankings = imported(tmp_path, QA_FEEDBACK, "qa-feedback")
    pairs: Callable[[Ranking], int] = lambda one: sum(1 for _ in one.comparisons())  # noqa: E731
    assert f"500 rankings, {sum(map(pairs, rankings))} untied pairs" in _lines(tmp_path)[0]
