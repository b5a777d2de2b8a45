"""A run with people's labels waits for them, says how far they are, and goes on by itself."""

from contextlib import closing
from pathlib import Path

import pytest

from labeling_ui.store.store import Store
from pipeline.config.experiment import ExperimentConfig
from pipeline.config.labeling import HumanAnnotators
from pipeline.config.loading import load_config
from pipeline.labeling.settings import STORE, gold_of
from pipeline.runs.failures import PeopleNeeded
from pipeline.steps.label import ranked_by_people
from pipeline.steps.order import run_experiment
from reward_models.atomic_files import write_jsonl
from reward_models.records import Ranking, RankingTask, Response, read_records
from stages.progress import Step

CONFIG = """
name: own
data: {{kind: quickstart, sizes: {{demonstrations: 16, ranking_prompts: 16, ppo_prompts: 16,
  validation_prompts: 16, test_prompts: 16, toxicity_prompts: 16, pretraining_texts: 16,
  held_out_texts: 16}}}}
labeling: {{kind: human, tasks: {folder}/tasks.jsonl, wait: false, enough: 0.5}}
"""


def task(name: str) -> RankingTask:
    responses = tuple(Response(i, f"text {i}", "m", {}) for i in "ab")
    return RankingTask(name, f"prompt of {name}", responses)


TASKS = [task(f"t{i}") for i in range(4)]


def ranking(task: str, annotator: str = "ada") -> Ranking:
    return Ranking(task, annotator, "human", {"a": 1, "b": 2})


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    write_jsonl(tmp_path / "tasks.jsonl", (task.to_json() for task in TASKS))
    (tmp_path / "own.yaml").write_text(CONFIG.format(folder=tmp_path))
    return load_config(tmp_path / "own.yaml")


def test_a_run_that_does_not_wait_says_how_many_are_missing_and_goes_on_later(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(PeopleNeeded, match="0 of 4 tasks are ranked and 2 are needed: 2 more"):
        run_experiment(config, run, until="label")
    with closing(Store(run / STORE)) as store:
        store.submit_all([ranking("t0"), ranking("t3")])
    run_experiment(config, run, until="label")
    rankings = read_records(run / "label/rankings.jsonl", Ranking)
    assert [one.task for one in rankings] == ["t0", "t3"]


def test_what_was_ranked_stays_up_to_date_until_more_is_ranked(
    config: ExperimentConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with closing(Store(run / STORE)) as store:
        store.add_tasks(TASKS)
        store.submit_all([ranking("t0"), ranking("t3")])
        run_experiment(config, run, until="label")
        run_experiment(config, run, until="label")
        assert "label: up to date" in capsys.readouterr().err
        store.submit(ranking("t1"))
    run_experiment(config, run, until="label")
    assert "changed: answers" in capsys.readouterr().err
    assert len(read_records(run / "label/rankings.jsonl", Ranking)) == 3


def test_how_the_room_is_served_does_not_make_its_rankings_anew(
    config: ExperimentConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(Store(tmp_path / "run" / STORE)) as store:
        store.add_tasks(TASKS)
        store.submit_all([ranking("t0"), ranking("t3")])
    run_experiment(config, tmp_path / "run", until="label")
    elsewhere = ["labeling.port=7861", "labeling.host=0.0.0.0", "labeling.wait=true"]
    again = load_config(tmp_path / "own.yaml", elsewhere)
    run_experiment(again, tmp_path / "run", until="label")
    assert "label: up to date" in capsys.readouterr().err


def test_a_mistake_in_the_form_is_told_before_anything_is_done(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    wrong = load_config(tmp_path / "own.yaml", ["labeling.form=nowhere.yaml"])
    with pytest.raises(ValueError, match=r"nowhere.yaml: no such file"):
        run_experiment(wrong, tmp_path / "run")
    assert config.labeling.kind == "human"
    assert not (tmp_path / "run").exists()


def test_the_room_is_open_until_enough_is_ranked_and_the_count_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labeling = HumanAnnotators(kind="human", port=0)
    steps: list[Step] = []

    def people_work(step: Step) -> None:
        with closing(Store(tmp_path / STORE)) as store:
            store.submit(ranking(f"t{step.done}" if step.done < step.total else "t0"))
        steps.append(step)

    rankings = ranked_by_people(labeling, TASKS, tmp_path, people_work)
    assert "Labeling room: http://127.0.0.1:" in capsys.readouterr().out
    assert [step.done for step in steps[:5]] == [0, 1, 2, 3, 4]
    assert {step.total for step in steps} == {4}
    assert len(rankings) == 4


def gold_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "gold"
    folder.mkdir()
    write_jsonl(folder / "tasks.jsonl", [task(f"gold-{i}").to_json() for i in range(2)])
    known = {"flags": {"a": ["toxic"]}, "extra": {"flags_no": {"b": ["toxic"]}}}
    rows = [Ranking(f"gold-{i}", "us", "imported", {"a": 1, "b": 2}, **known) for i in range(2)]
    write_jsonl(folder / "rankings.jsonl", [row.to_json() for row in rows])
    return folder


def test_gold_tasks_are_handed_out_and_never_trained_on(tmp_path: Path) -> None:
    labeling = HumanAnnotators(kind="human", wait=False, gold=str(gold_folder(tmp_path)))
    with closing(Store(tmp_path / STORE)) as store:
        store.add_tasks(TASKS)
        store.submit_all([ranking(task.id) for task in TASKS])
        rankings = ranked_by_people(labeling, TASKS, tmp_path, lambda _: None)
        assert store.gold() == {"gold-0": {"a": 1, "b": 2}, "gold-1": {"a": 1, "b": 2}}
        store.submit(ranking("gold-0"))
    assert [one.task for one in rankings] == [task.id for task in TASKS]
    assert gold_of(labeling) is not None
    assert gold_of(labeling).flags["gold-1"] == {"a": {"toxic": True}, "b": {"toxic": False}}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("screening={tasks: 3}", "2 gold tasks, but labeling.screening.tasks is 3"),
        ("gold=nowhere", "nowhere/tasks.jsonl: no such file"),
        ("tls={certificate: no.pem, key: no.key}", "no.pem: no such file"),
        ("reward_model=nowhere", "nowhere: no such folder"),
        ("proxy={addresses: [proxy.local]}", "proxy address is 'proxy.local'"),
    ],
)
def test_a_room_that_could_not_be_opened_is_refused_before_anything_is_done(
    config: ExperimentConfig, tmp_path: Path, change: str, complaint: str
) -> None:
    assert config.labeling.kind == "human"
    sets = [f"labeling.gold={gold_folder(tmp_path)}", f"labeling.{change}"]
    with pytest.raises(ValueError, match=complaint):
        run_experiment(load_config(tmp_path / "own.yaml", sets), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("sets", "complaint"),
    [
        (["screening={}"], "screening is set but gold is not"),
        (["gold=g", "screening={tasks: 0}"], "screening.tasks"),
        (["gold=g", "screening={comparisons: 1.5}"], "screening.comparisons"),
        (["gold=g", "screening={flags: -0.1}"], "screening.flags"),
        (["proxy={}", "access=name"], "proxy is set: the proxy signs people in"),
        (["tls={certificate: a, key: b}", "behind_tls=true"], "expected one of them"),
    ],
)
def test_settings_of_the_room_that_make_no_sense_are_refused(
    config: ExperimentConfig, tmp_path: Path, sets: list[str], complaint: str
) -> None:
    assert config.name == "own"
    with pytest.raises(ValueError, match=complaint):
        load_config(tmp_path / "own.yaml", [f"labeling.{one}" for one in sets])
