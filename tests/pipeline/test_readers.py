"""Every reader of a user's file gives what is in it or one line that names the file."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from labeling_ui.formats.argilla import to_argilla
from labeling_ui.formats.files import read_labels
from labeling_ui.formats.label_studio import to_label_studio
from labeling_ui.forms import load_form
from pipeline.cli.app import app
from pipeline.config.loading import load_config, load_mapping
from pipeline.evaluation.external.sample_files import open_samples
from pipeline.evaluation.samples.results import read_results
from pipeline.evaluation.suites import bias
from pipeline.evaluation.suites.toxicity import load_toxicity_prompts
from pipeline.evaluation.suites.truthfulqa import load_questions
from pipeline.evaluation.validity import read_begin
from pipeline.labeling.room import add_tasks
from pipeline.steps.order import experiment_stages
from pipeline.studies import public_data
from pipeline.studies.probing import load_labelled_texts
from reward_models.records import Ranking, RankingTask, Response, read_rankings
from stages.data.demonstrations import load_demonstrations, load_prompts, pretraining_texts
from stages.data.preferences import load_pairs, load_qa_feedback, load_squality

Reader = Callable[[Path], object]
TASKS = [
    RankingTask(f"t{i}", f"p{i}", (Response("a", "A", "m", {}), Response("b", "B", "m", {})))
    for i in range(3)
]
RANKINGS = [Ranking(task.id, "ann", "human", {"a": 1, "b": 2}) for task in TASKS]
U, A = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}


def lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def samples(path: Path) -> object:
    return list(open_samples([path], {}).rows())


def room(path: Path) -> object:
    return add_tasks(path, f"{path}.sqlite", "comparison", 1, lambda _: None)


SQUALITY = {
    "passage-id": "1",
    "questions": {
        "1": {
            name: {
                "response": name,
                "reviews": [{"worker_id": 1, "overall-rank": rank, "overall-rating": 9}],
            }
            for rank, name in enumerate("ab", 1)
        }
    },
}
QA = {
    "question": "q?",
    "passages": [["title", "sentence"]],
    "preference": [1, 1, 1, 1, 1, 1],
    **{f"prediction {i}": f"answer {i}" for i in range(1, 5)},
    "feedback": {"errors": [{"error type": "Unverifiable"}], "corrected-prediction": "c"},
}
FORM = "name: f\nversion: 1\nkind: ranking\nguideline: g\n"
READERS: dict[str, tuple[str, str, Reader]] = {
    "demonstrations": (
        "d.jsonl",
        lines([{"prompt": "p", "response": "r"}, {"messages": [U, A]}]),
        lambda path: load_demonstrations(str(path)),
    ),
    "instances": (
        "i.jsonl",
        lines([{"id": "s", "instruction": "i", "instances": [{"input": "x", "output": "y"}]}]),
        lambda path: load_demonstrations(str(path)),
    ),
    "prompts": (
        "p.json",
        json.dumps([{"prompt": "p", "id": 1}, {"prompt": [U]}]),
        lambda path: load_prompts(str(path)),
    ),
    "texts": ("t.txt", "one\n\ntwo\n", lambda path: list(pretraining_texts(str(path)))),
    "text rows": ("t.csv", "text\none\ntwo\n", lambda path: list(pretraining_texts(str(path)))),
    "pairs": (
        "p.jsonl",
        lines(
            [
                {"prompt": "p", "chosen": "c", "rejected": "r"},
                {"chosen": [U, A], "rejected": [U, {**A, "content": "b"}]},
            ]
        ),
        load_pairs,
    ),
    "tasks": (
        "t.jsonl",
        lines([task.to_json() for task in TASKS]),
        lambda path: read_labels(path, "jsonl"),
    ),
    "rankings": (
        "r.jsonl",
        lines([one.to_json() for one in RANKINGS]),
        lambda path: read_rankings(path, TASKS),
    ),
    "argilla": (
        "a.jsonl",
        lines(to_argilla(TASKS, RANKINGS)),
        lambda path: read_labels(path, "argilla"),
    ),
    "label studio": (
        "l.json",
        json.dumps(to_label_studio(TASKS, RANKINGS)),
        lambda path: read_labels(path, "label-studio"),
    ),
    "squality": ("s.jsonl", lines([SQUALITY]), load_squality),
    "qa-feedback": ("q.json", json.dumps([QA, QA]), load_qa_feedback),
    "own samples": (
        "s.jsonl",
        lines([{"id": "1", "model": "m", "prompt": "p", "completion": "c", "suite": "x"}]),
        samples,
    ),
    "others' samples": ("s.csv", "model,prompt,sample,toxicity\nm,p,c,0.5\n", samples),
    "samples to compare": (
        "c.jsonl",
        lines([{"id": "1", "model": m, "prompt": "p", "completion": "c"} for m in "xy"]),
        room,
    ),
    "labelled texts": (
        "l.csv",
        "text,label\na,x\nb,y\n",
        lambda path: load_labelled_texts(str(path)),
    ),
    "toxicity prompts": (
        "t.jsonl",
        lines([{"prompt": {"text": "t", "toxicity": 0.5}}]),
        lambda path: load_toxicity_prompts(str(path)),
    ),
    "crows-pairs": (
        "c.csv",
        ",sent_more,sent_less,stereo_antistereo,bias_type\n0,a,b,stereo,x\n",
        bias.load_pairs,
    ),
    "winogender": (
        "w.tsv",
        "sentid\tsentence\na.b.0.male.txt\tx\na.b.0.female.txt\ty\n",
        bias.load_pairs,
    ),
    "truthfulqa": (
        "t.csv",
        "Question,Best Answer,Correct Answers,Incorrect Answers\nq,b,b; c,d\n",
        load_questions,
    ),
    "begin": (
        "b.tsv",
        "model_name\tknowledge\tmessage\tresponse\tbegin_label\nm\tk\tq\tr\tGeneric\n",
        lambda path: read_begin(path, "closed_qa"),
    ),
    "e2e": ("e.csv", "mr,ref\neatType[pub],A pub.\n", public_data._references),
    "form": ("f.yaml", FORM, load_form),
    "config": ("c.yaml", "name: n\nseed: 1\n", load_mapping),
    "results": (
        "r.json",
        json.dumps(
            {
                "results": {},
                "quantities": {},
                "comparisons": [],
                "scorers": {},
                "notes": [],
                "about": {},
            }
        ),
        read_results,
    ),
}


def outcome(name: str, path: Path) -> str | None:
    """The line that a reader refuses a file with; None where it takes it."""
    try:
        READERS[name][2](path)
    except ValueError as error:
        assert not isinstance(error, UnicodeError)  # noqa: PT017
        return str(error)
    return None


@pytest.mark.parametrize("name", READERS)
def test_every_reader_takes_a_sound_file(name: str, tmp_path: Path) -> None:
    file, content, read = READERS[name]
    (tmp_path / file).write_text(content, encoding="utf-8")
    read(tmp_path / file)


WHOLE = {
    "latin-1": "Gr\xfc\xdfe\n".encode("latin-1"),
    "utf-16": "text\na\n".encode("utf-16"),
    "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "parquet": b"PAR1" + b"\0" * 40,
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff",
    "nul": b"\0" * 40,
    "folder": None,
    "nothing there": b"",
}


@pytest.mark.parametrize("content", WHOLE)
@pytest.mark.parametrize("name", READERS)
def test_every_reader_refuses_what_is_no_text_by_the_files_name(
    name: str, content: str, tmp_path: Path
) -> None:
    path = tmp_path / READERS[name][0]
    data = WHOLE[content]
    if data is None:
        path.mkdir()
    elif data:
        path.write_bytes(data)
    line = outcome(name, path)
    assert line is not None
    assert line.startswith(str(path))


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), name=st.sampled_from(sorted(READERS)))
def test_changed_bytes_never_make_a_reader_fail_otherwise(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str
) -> None:
    file, text, _ = READERS[name]
    content = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, max(0, len(content) - 1)))
        change = data.draw(st.binary(max_size=3) | st.sampled_from([b"null", b'""', b"[]", b"{}"]))
        content[position : position + data.draw(st.integers(0, 5))] = change
    path = tmp_path_factory.mktemp("fuzz") / file
    path.write_bytes(content)
    line = outcome(name, path)
    assert line is None or str(path) in line


VALUES: list[Any] = [None, True, 3, -1.5, "", "x", "\u2028", [], ["x"], [None], {}, {"x": 1}, [{}]]


def changed(value: Any, data: st.DataObject) -> Any:
    """The value with something in it replaced or left out."""
    if isinstance(value, dict) and value and data.draw(st.booleans()):
        name = data.draw(st.sampled_from(sorted(value)))
        rest = {key: one for key, one in value.items() if key != name}
        return rest if data.draw(st.booleans()) else {**rest, name: changed(value[name], data)}
    if isinstance(value, list) and value and data.draw(st.booleans()):
        position = data.draw(st.integers(0, len(value) - 1))
        return [*value[:position], changed(value[position], data), *value[position + 1 :]]
    return data.draw(st.sampled_from(VALUES))


OF_JSON = [name for name, (file, _, _) in READERS.items() if file.endswith((".jsonl", ".json"))]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(OF_JSON)))
def test_changed_values_never_make_a_reader_fail_otherwise(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str
) -> None:
    file, text, _ = READERS[name]
    whole = file.endswith(".json")
    value = json.loads(text) if whole else [json.loads(line) for line in text.splitlines()]
    for _ in range(data.draw(st.integers(1, 2))):
        value = changed(value, data)
    path = tmp_path_factory.mktemp("fuzz") / file
    path.write_text(
        json.dumps(value)
        if whole or not isinstance(value, list)
        else "".join(json.dumps(row) + "\n" for row in value)
    )
    line = outcome(name, path)
    assert line is None or str(path) in line


LATIN = "Gr\xfc\xdfe\n".encode("latin-1")
COMMANDS = {
    "import": ("t.jsonl", ["import", "t.jsonl", "--store", "new.sqlite"]),
    "import argilla": ("t.json", ["import", "t.json", "--store", "new", "--format", "argilla"]),
    "add-tasks": ("t.csv", ["add-tasks", "t.csv", "new.sqlite", "--kind", "prompt"]),
    "score": ("s.csv", ["score", "s.csv", "--out", "new"]),
    "probe": ("t.csv", ["probe", "model", "t.csv", "--out", "new"]),
    "agreement": ("r.jsonl", ["agreement", "r.jsonl"]),
}


@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize("content", [LATIN, WHOLE["parquet"]], ids=["latin-1", "parquet"])
def test_a_verb_ends_with_one_line_and_writes_nothing(
    verb: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file, command = COMMANDS[verb]
    Path(file).write_bytes(content)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2, done.output
    assert len(done.stderr.strip().splitlines()) == 1
    assert file in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [file]


def experiment(folder: Path, labeling: str) -> Path:
    rows = [{"prompt": f"p{i}", "response": "r", "id": i} for i in range(9)]
    (folder / "d.jsonl").write_text(lines(rows))
    path = folder / "c.yaml"
    path.write_text(
        f"name: t\ndata: {{kind: files, demonstrations: {folder}/d.jsonl, "
        f"ranking_prompts: {folder}/d.jsonl, test_prompts: {folder}/d.jsonl}}\n"
        f"labeling: {labeling}\n"
    )
    return path


def test_imported_pairs_are_read_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(lines([{"prompt": "p", "chosen": "c", "rejected": None}]))
    path = experiment(tmp_path, f"{{kind: imported, rankings: {tmp_path}/p.jsonl}}")
    names = [stage.name for stage in experiment_stages(load_config(path), tmp_path / "run")]
    assert names[:2] == ["data", "label"]
    done = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert "p.jsonl:1: 'rejected' is NoneType" in done.stderr
    assert not (tmp_path / "run/sft").exists()


def test_an_evaluations_files_are_read_before_anything_is_trained(tmp_path: Path) -> None:
    path = experiment(tmp_path, "{kind: human}")
    (tmp_path / "q.csv").write_bytes(LATIN)
    key = f"evaluation.truthfulqa.questions={tmp_path}/q.csv"
    run = tmp_path / "run"
    done = CliRunner().invoke(app, ["run", str(path), "--out", str(run), "--set", key])
    assert done.exit_code == 2
    assert "q.csv:1: not UTF-8" in done.stderr
    assert not run.exists()


def test_a_task_id_that_stands_twice_ends_a_run(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(lines([task.to_json() for task in (*TASKS, TASKS[0])]))
    (tmp_path / "r.jsonl").write_text(lines([one.to_json() for one in RANKINGS]))
    files = f"tasks: {tmp_path}/t.jsonl, rankings: {tmp_path}/r.jsonl"
    path = experiment(tmp_path, f"{{kind: imported, {files}}}")
    done = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert "t.jsonl:4: task 't0' again; it is at" in done.stderr


@pytest.mark.parametrize("verb", ["import", "add-tasks"])
def test_a_task_id_that_stands_twice_is_refused_by_verbs(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.jsonl").write_text(lines([task.to_json() for task in (*TASKS, TASKS[1])]))
    more = ["--store", "s"] if verb == "import" else ["s", "--kind", "ranking"]
    done = CliRunner().invoke(app, [verb, "t.jsonl", *more])
    assert done.exit_code == 2
    assert "t.jsonl:4: task 't1' again; it is at t.jsonl:2 already" in done.stderr


def test_prompts_with_integer_ids_become_the_tasks_of_those_names(tmp_path: Path) -> None:
    from pipeline.steps.sample import _task_ids

    (tmp_path / "p.jsonl").write_text(lines([{"prompt": "a", "id": 7}, {"prompt": "b", "id": 7}]))
    assert _task_ids(load_prompts(str(tmp_path / "p.jsonl"))) == ["7", "7#2"]
