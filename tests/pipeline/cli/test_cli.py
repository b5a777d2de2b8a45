"""The command as a person meets it: exit codes, the last line, and one line for every mistake."""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.cli.errors import guarded
from pipeline.config.loading import load_config
from pipeline.runs.failures import PeopleNeeded, one_line
from pipeline.runs.run import Run, State, Status
from pipeline.steps.order import require_done, stages_until

ROOT = Path(__file__).parents[3]
QUICKSTART = str(ROOT / "configs/quickstart.yaml")
SMALL = (
    "--set",
    "data.sizes={demonstrations: 12, ranking_prompts: 6, ppo_prompts: 12, "
    "validation_prompts: 4, test_prompts: 6, toxicity_prompts: 3, pretraining_texts: 12, "
    "held_out_texts: 4}",
)


def own_process(*arguments: str | Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, `before` being shell to put in front of it."""
    command = [sys.executable, "-m", "pipeline.cli.app", *map(str, arguments)]
    if before:
        command = ["bash", "-c", f'{before}; exec "$@"', "bash", *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )


def rlhf(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command in this process."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refusal: exit code 2, nothing on stdout, no traceback."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("rlhf: ")]
    assert len(lines) == 1, done.stderr
    return lines[0].removeprefix("rlhf: ")


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    """A config on files of the user's own, all of them well formed, with imported rankings."""
    rows: dict[str, list[dict[str, object]]] = {
        "demonstrations": [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(20)],
        "prompts": [{"prompt": f"p{i}"} for i in range(20)],
        "tasks": [
            {
                "id": "t1",
                "prompt": "Say why.",
                "responses": [{"id": name, "text": f"Because {name}."} for name in "abcd"],
            }
        ],
        "rankings": [
            {
                "task": "t1",
                "annotator": "ann",
                "kind": "imported",
                "ranks": {"a": 1, "b": 2, "c": 2, "d": 4},
            }
        ],
    }
    for name, written in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in written)
        (tmp_path / f"{name}.jsonl").write_text(text)
    config = f"""
name: own
data:
  kind: files
  demonstrations: {tmp_path}/demonstrations.jsonl
  ranking_prompts: {tmp_path}/prompts.jsonl
  test_prompts: {tmp_path}/prompts.jsonl
labeling: {{kind: imported, tasks: {tmp_path}/tasks.jsonl, rankings: {tmp_path}/rankings.jsonl}}
"""
    (tmp_path / "own.yaml").write_text(config)
    return tmp_path


def until_label(own_data: Path, *further: str) -> subprocess.CompletedProcess[str]:
    run = own_data / "run"
    return rlhf("run", own_data / "own.yaml", "--out", run, "--until", "label", *further)


def test_the_last_line_on_stdout_is_the_artefact(tmp_path: Path):
    command = ("run", QUICKSTART, *SMALL, "--out", tmp_path / "run", "--until", "data")
    done = own_process(*command)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/run/data\n"), done.stderr
    assert (tmp_path / "run/data/manifest.json").is_file()
    assert "data: done in" in done.stderr
    assert "data: up to date" in rlhf(*command).stderr


def test_the_users_own_files_are_read_and_checked(own_data: Path):
    done = until_label(own_data)
    assert done.returncode == 0, done.stderr
    labels = json.loads((own_data / "run/label/manifest.json").read_text())["labels"]
    assert labels == ["imported"]


def test_preference_pairs_are_rankings_without_tasks(own_data: Path):
    pairs = own_data / "pairs.jsonl"
    pairs.write_text('{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}\n')
    labeling = f"labeling={{kind: imported, rankings: {pairs}}}"
    done = until_label(own_data, "--set", labeling)
    assert done.returncode == 0, done.stderr
    (task,) = (own_data / "run/label/tasks.jsonl").read_text().splitlines()
    assert json.loads(task)["prompt"] == "Why?"


def test_a_missing_config_is_named(tmp_path: Path):
    assert refused(rlhf("run", tmp_path / "no.yaml")).startswith(
        f"{tmp_path}/no.yaml: no such file"
    )


def test_an_unknown_key_is_named_with_the_nearest():
    line = refused(rlhf("run", QUICKSTART, "--set", "ppo.kl.coeficient=1"))
    assert line.endswith("ppo.kl.coeficient is not a key; did you mean ppo.kl.coefficient?")


def test_a_missing_data_file_is_named(own_data: Path):
    (own_data / "demonstrations.jsonl").unlink()
    assert f"{own_data}/demonstrations.jsonl: no such file" in refused(until_label(own_data))
    assert not (own_data / "run/data").exists()


def test_a_broken_line_17_is_named(own_data: Path):
    path = own_data / "demonstrations.jsonl"
    lines = path.read_text().splitlines()
    lines[16] = '{"prompt": "p16", "resp'
    path.write_text("\n".join(lines))
    assert refused(until_label(own_data)).startswith(f"{path}:17: not JSON")
    assert not (own_data / "run/data/manifest.json").exists()


def test_fewer_ranks_than_responses_are_told_by_line(own_data: Path):
    path = own_data / "rankings.jsonl"
    row = {"task": "t1", "annotator": "bob", "kind": "imported", "ranks": {"a": 1, "b": 2, "c": 3}}
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    line = refused(until_label(own_data))
    assert line == f"{path}:2: 4 responses but 3 ranks for prompt 'Say why.'"
    assert not (own_data / "run/label/rankings.jsonl").exists()


def test_a_stage_without_its_inputs_says_what_comes_first(tmp_path: Path):
    line = refused(rlhf("reward", QUICKSTART, *SMALL, "--out", tmp_path / "run"))
    assert line.startswith(f"{tmp_path}/run/sft is not finished; expected it done first")


def test_a_verb_does_the_earlier_stages_that_need_neither_training_nor_people(own_data: Path):
    settings = ("reward_base=base", "reward.held_out=0", "reward.prompts_per_batch=1", "threads=1")
    sets = [part for text in settings for part in ("--set", text)]
    done = rlhf("reward", own_data / "own.yaml", *sets, "--out", own_data / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{own_data}/run/reward\n"
    assert (own_data / "run/label/manifest.json").is_file()


HUMAN, IMPORTED = {"kind": "human"}, {"kind": "imported", "rankings": "rankings.jsonl"}


@pytest.mark.parametrize(
    ("name", "labeling", "state", "command"),
    [
        ("sample", HUMAN, "new", None),
        ("sample", HUMAN, "changed", "rlhf run --until sample"),
        ("label", IMPORTED, "new", None),
        ("label", IMPORTED, "changed", None),
        ("label", HUMAN, "new", "rlhf label"),
        ("sft", IMPORTED, "new", "rlhf run --until sft"),
        ("sft", IMPORTED, "interrupted", "rlhf run --until sft"),
        ("sft", IMPORTED, "finished", None),
        ("data", HUMAN, "changed", None),
    ],
)
def test_an_earlier_stage_that_a_verb_does_not_run_is_named_with_the_command_that_does(
    tmp_path: Path, name: str, labeling: dict[str, str], state: State, command: str | None
):
    config = load_config(Path(QUICKSTART), [f"labeling={json.dumps(labeling)}"])
    earlier = stages_until(config, tmp_path, name)[-1]
    check = partial(require_done, Run(tmp_path), earlier, Status(state, "", "", {}))
    if command is None:
        check()
    else:
        with pytest.raises(ValueError, match=f"done first, by {command}$"):
            check()


def test_a_stage_that_the_experiment_lacks_is_refused(tmp_path: Path):
    line = refused(rlhf("run", QUICKSTART, "--until", "pp", "--out", tmp_path / "run"))
    assert line.startswith("stage 'pp' is not part of this experiment; expected one of data, sft")


def test_processes_without_sharding_are_refused(tmp_path: Path):
    line = refused(rlhf("sft", QUICKSTART, "--processes", "2", "--out", tmp_path / "run"))
    assert line.startswith("--processes 2 needs --sharding; expected ddp, zero1, zero2, zero3")


def test_an_output_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "taken").write_text("")
    line = refused(rlhf("run", QUICKSTART, "--out", tmp_path / "taken"))
    assert line == f"{tmp_path}/taken is a file; expected a folder for the run, or none yet"


def in_a_mount(
    path: Path, options: str, *arguments: str | Path
) -> subprocess.CompletedProcess[str]:
    """Run the command with a small file system of its own at `path`."""
    path.mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("unshare is missing, so no file system can be mounted for the test")
    trial = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", str(path)]
    if subprocess.run(trial, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    command = [sys.executable, "-m", "pipeline.cli.app", *map(str, arguments)]
    mount = f"mount -t tmpfs -o {options} tmpfs {path}"
    shell = f'{mount}; PYTHONPATH={ROOT} "$@"; code=$?; ls -A {path}/run >&2; exit $code'
    return subprocess.run(
        ["unshare", "-m", "bash", "-c", shell, "bash", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_read_only_folder_is_one_line(tmp_path: Path):
    path = tmp_path / "disk"
    done = in_a_mount(path, "ro", "run", QUICKSTART, "--out", path / "run", "--until", "data")
    assert refused(done) == f"{path}/run: the folder is read-only"


def test_a_full_disk_is_one_line_and_leaves_no_half_artefact(tmp_path: Path):
    path = tmp_path / "disk"
    arguments = ("run", QUICKSTART, "--out", path / "run", "--until", "data")
    done = in_a_mount(path, "size=128k", *arguments)
    assert refused(done).endswith(": the disk is full")
    assert "data" in done.stderr.splitlines()


def test_a_limit_on_file_size_is_one_line(tmp_path: Path):
    command = ("run", QUICKSTART, "--out", tmp_path / "run", "--until", "data")
    done = own_process(*command, before="ulimit -f 8")
    assert "the file would be larger than is allowed here" in refused(done)
    assert not (tmp_path / "run/data/manifest.json").exists()


def test_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str]):
    def broken() -> None:
        raise KeyError("surprise")

    assert guarded(broken, None) == 1
    assert "Traceback" in capsys.readouterr().err


def test_libraries_warn_of_nothing_that_a_user_can_change():
    assert guarded(lambda: None, None) == 0
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)


def test_a_full_disk_is_seen_through_a_librarys_own_error(tmp_path: Path):
    wrapped = RuntimeError("could not serialise")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device", "weights.bin")
    assert one_line(wrapped, tmp_path) == "weights.bin: the disk is full"
    line = 'Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "..." })'
    assert one_line(RuntimeError(line), tmp_path) == f"{tmp_path}: the disk is full"


def test_a_runtime_error_with_room_to_write_stays_a_bug(tmp_path: Path):
    assert one_line(RuntimeError("shapes do not match"), tmp_path) is None


def test_people_who_are_needed_are_no_failure_of_ours(capsys: pytest.CaptureFixture[str]):
    def wait() -> None:
        raise PeopleNeeded("3 of 9 tasks wait for people to rank them")

    assert guarded(wait, None) == 3
    assert "resume with:" in capsys.readouterr().err


def _accept_ctrl_c() -> None:
    """Tests that a shell started in the background inherit a deaf ear."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on_and_does(tmp_path: Path, sent: int, code: int):
    out = tmp_path / "run"
    sets = ["--set", "data.sizes.pretraining_texts=400000", "--set", "data.sizes.ppo_prompts=10"]
    arguments = ["run", QUICKSTART, *sets, "--out", str(out), "--until", "data"]
    command = [sys.executable, "-m", "pipeline.cli.app", *arguments]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_accept_ctrl_c,
    ) as process:
        end = time.monotonic() + 60
        while not (out / "data/started.json").exists():
            assert time.monotonic() < end, "the stage never began"
            time.sleep(0.05)
        process.send_signal(sent)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (code, "")
    assert f"To resume:  rlhf run {QUICKSTART} " in stderr
    assert not (out / "data/manifest.json").exists()
    quick = ["--set", "data.sizes.pretraining_texts=10", "--set", "data.sizes.ppo_prompts=10"]
    assert rlhf("run", QUICKSTART, *quick, "--out", out, "--until", "data").returncode == 0


def test_doctor_names_what_it_found():
    done = rlhf("doctor")
    assert done.returncode == 0, done.stderr
    assert {"cores", "memory", "torch"} <= {line.split()[0] for line in done.stdout.splitlines()}


def test_a_policy_that_is_not_there_is_refused(tmp_path: Path):
    assert refused(rlhf("export-model", tmp_path, "--out", tmp_path / "x")).startswith(
        f"{tmp_path}: no policy"
    )
    assert refused(rlhf("compare", tmp_path)).startswith(f"{tmp_path}: no results there")
    assert refused(rlhf("export", tmp_path, "--out", tmp_path / "x")).startswith(
        f"{tmp_path}: no rankings"
    )


def test_a_file_that_only_the_last_stage_reads_is_missed_before_the_first(tmp_path: Path):
    sets = ["--set", "evaluation.bias.pairs=[absent.csv]", "--out", str(tmp_path / "run")]
    assert refused(rlhf("run", QUICKSTART, *sets)).endswith(
        "absent.csv: no such file; stage evaluate reads it as evaluation.bias.pairs 1"
    )
    assert not (tmp_path / "run").exists()
