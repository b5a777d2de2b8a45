"""A room of its own from the command line: tasks in, answers out, and the pipeline reads them."""

import random
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from labeling_ui.forms import forms_with
from labeling_ui.store.accounts import Account
from labeling_ui.store.progress import Progress
from labeling_ui.store.store import Store
from labeling_ui.tasks.assignment import Assignment
from labeling_ui.web.room import Room
from pipeline.cli.app import app
from pipeline.config.labeling import RoomSettings
from pipeline.evaluation.samples.results import read_results
from pipeline.labeling import room
from reward_models.atomic_files import write_jsonl
from reward_models.records import Prompt, Ranking, RankingTask, Response

MODELS = ("ppo", "sft", "base")


def rlhf(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def samples(path: Path, num_prompts: int) -> None:
    rows = [
        {"id": f"p{i}", "model": model, "prompt": f"Why {i}?", "completion": f"{model} says"}
        for i in range(num_prompts)
        for model in MODELS
    ]
    write_jsonl(path, rows)


def judge_all(store: Store) -> None:
    """One annotator, for whom ppo beats sft beats base."""
    desk = Assignment(store, rng=random.Random(0))
    made = Room(store, forms_with(None), desk, Progress(store))
    ada = Account("ada", "annotator")
    while (view := made.next_task(ada, {})["task"]) is not None:
        texts = [output["plain"] for output in view["outputs"]]
        order = sorted((0, 1), key=lambda i: MODELS.index(texts[i].split()[0]))
        body = {"tiers": [[i] for i in order]}
        made.submit(ada, {"token": view["token"], "form": view["token"], "body": body})


def test_people_judge_samples_and_their_win_rates_are_evaluated(tmp_path: Path) -> None:
    samples(tmp_path / "samples.jsonl", 8)
    where = tmp_path / "labels.sqlite"
    output = rlhf("add-tasks", tmp_path / "samples.jsonl", where, "--kind", "comparison")
    assert "24 of 24 tasks are new" in output
    with closing(Store(where)) as store:
        judge_all(store)
    rlhf("export", where, "--out", tmp_path / "out")
    scored = tmp_path / "scored"
    labels = ("--labels", tmp_path / "out/comparisons")
    rlhf("score", *labels, "--out", scored, "--set", "baseline=sft")
    results = read_results(scored / "results.json")
    cells = {model: results.cell(model, "human_labels", "win_rate") for model in MODELS}
    won = {model: cell.value for model, cell in cells.items() if cell is not None}
    assert won == {"ppo": 1.0, "sft": 0.5, "base": 0.0}


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "w.jsonl", [{"id": "a", "prompt": "Who?"}, {"id": "b", "shape": "odd"}])
    with pytest.raises(ValueError, match=r"w.jsonl:2: 'shape' is 'odd', expected one of plain"):
        room.add_tasks(tmp_path / "w.jsonl", str(tmp_path / "s"), "demonstration", 1, print)
    write_jsonl(tmp_path / "s.jsonl", [{"id": "a", "completion": "x"}])
    with pytest.raises(ValueError, match=r"s.jsonl:1: no text 'model'"):
        room.add_tasks(tmp_path / "s.jsonl", str(tmp_path / "s"), "comparison", 1, print)


def test_a_policy_answers_a_prompt_several_times_and_each_time_anew() -> None:
    base = Path(room.__file__).parents[1] / "quickstart" / "base"
    answer, prompt = room.policy_answers(base), Prompt("Where does Ada live?")
    first, second = answer(prompt, 4), answer(prompt, 4)
    assert [one.id for one in first] == ["0", "1", "2", "3"]
    assert all(one.text for one in first)
    assert {one.text for one in first} != {one.text for one in second}
    assert first[0].sampling == {"temperature": 1.0, "top_p": 1.0}


def test_a_room_is_served_with_the_settings_of_an_experiment_s_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = RankingTask("g", "Why?", (Response("a", "x", "m", {}), Response("b", "y", "m", {})))
    (tmp_path / "gold").mkdir()
    write_jsonl(tmp_path / "gold/tasks.jsonl", [task.to_json()])
    right = Ranking("g", "olga", "human", {"a": 1, "b": 2})
    write_jsonl(tmp_path / "gold/rankings.jsonl", [right.to_json()])
    seen: list[tuple[RoomSettings, list[RankingTask]]] = []

    def served(settings: RoomSettings, _: Store, tasks: list[RankingTask], **__: object) -> None:
        seen.append((settings, tasks))

    monkeypatch.setattr(room, "serve_store", served)
    sets = ("proxy={owners: [olga]}", "behind_tls=true", f"labeling.gold={tmp_path / 'gold'}")
    options = [word for text in sets for word in ("--set", text)]
    rlhf("room", tmp_path / "labels.sqlite", "--host", "0.0.0.0", "--port", 8000, *options)
    [(settings, tasks)] = seen
    assert (settings.host, settings.port, settings.behind_tls) == ("0.0.0.0", 8000, True)
    assert settings.proxy is not None
    assert settings.proxy.owners == ["olga"]
    assert [one.id for one in tasks] == ["g"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("prxy={}", "room: prxy is not a key; did you mean proxy?"),
        ("gold=nowhere", "nowhere"),
        ("tls={certificate: c.pem, key: k.pem}", "c.pem: no such file; expected the certificate"),
        ("screening={}", "room: screening is set but gold is not"),
    ],
)
def test_wrong_settings_of_a_room_are_one_line(tmp_path: Path, text: str, line: str) -> None:
    done = CliRunner().invoke(app, ["room", str(tmp_path / "s.sqlite"), "--set", text])
    assert done.exit_code == 2
    assert line in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not (tmp_path / "s.sqlite").exists()
