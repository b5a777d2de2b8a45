"""Hashes by content, manifests that are whole, and stages that are done once."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.runs.manifest import Hashes, Manifest
from pipeline.runs.run import open_run
from pipeline.runs.stage import Source, Stage
from stages.progress import Report, Step, silent

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Job(Stage):
    """A stage made of its parts."""

    title: str
    do: Callable[[Path, Report], None] = lambda _, __: None
    given: Mapping[str, Source] = field(default_factory=dict)
    decisive: Mapping[str, Any] = field(default_factory=lambda: {"seed": 0})
    kinds: frozenset[str] = frozenset()
    about = "a job"

    @property
    def name(self) -> str:
        return self.title

    def inputs(self) -> Mapping[str, Source]:
        return self.given

    def settings(self) -> Mapping[str, Any]:
        return self.decisive

    def run(self, out: Path, report: Report) -> None:
        self.do(out, report)

    def labels(self, out: Path) -> set[str]:
        assert out.is_dir()
        return set(self.kinds)


def copying(run: Path, word: str = "x", *, done: list[str] | None = None) -> Stage:
    """Write the input and a word of the settings."""

    def work(out: Path, report: Report) -> None:
        text = (run / "given.txt").read_text()
        (out / "made.txt").write_text(f"{text} {word}")
        report(Step(1, 1, {"copy/words": 2.0}))
        if done is not None:
            done.append(word)

    settings = {"seed": 0, "copy": {"word": word}}
    return Job("copy", work, {"given": run / "given.txt"}, settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/given.txt").write_text("hello")
    return tmp_path / "run"


def advance(folder: Path, stage: Stage) -> str:
    with open_run(folder) as run:
        status = run.status(stage)
        if status.state != "finished":
            run.execute(stage, status, silent)
        return f"{status.state} {status.reason}".strip()


def test_a_finished_stage_is_not_done_again(folder: Path):
    done: list[str] = []
    assert advance(folder, copying(folder, done=done)) == "new"
    assert advance(folder, copying(folder, done=done)) == "finished"
    assert done == ["x"]


def test_a_touched_but_equal_input_changes_nothing(folder: Path):
    advance(folder, copying(folder))
    (folder / "given.txt").write_text("hello")
    os.utime(folder / "given.txt", ns=(1, 1))
    assert advance(folder, copying(folder)) == "finished"


def test_a_changed_input_is_named_and_done_again(folder: Path):
    advance(folder, copying(folder))
    (folder / "given.txt").write_text("good bye")
    assert advance(folder, copying(folder)) == "changed changed: input given"
    assert (folder / "copy/made.txt").read_text() == "good bye x"


def test_a_changed_setting_is_named_and_the_old_artefact_kept(folder: Path):
    advance(folder, copying(folder))
    assert advance(folder, copying(folder, "y")) == "changed changed: copy.word"
    assert (folder / "copy/made.txt").read_text() == "hello y"
    assert (folder / ".previous/copy/made.txt").read_text() == "hello x"


def test_a_meddled_artefact_is_made_again(folder: Path):
    advance(folder, copying(folder))
    (folder / "copy/made.txt").write_text("something else")
    assert advance(folder, copying(folder)).startswith("changed its files are not those it wrote")
    assert (folder / "copy/made.txt").read_text() == "hello x"


def test_a_manifest_names_everything_that_decided_the_result(folder: Path):
    advance(folder, copying(folder))
    made = Manifest.read(folder / "copy/manifest.json")
    assert made is not None
    assert made.settings == {"seed": 0, "copy": {"word": "x"}}
    assert made.inputs["given"].path == "given.txt"
    assert len(made.inputs["given"].sha256) == 64
    assert set(made.outputs) == {"made.txt", "metrics.jsonl"}
    assert {"python", "torch", "transformers", "trl"} <= set(made.libraries)
    assert made.code_version
    assert made.wall_s >= 0
    assert made.peak_rss_bytes > 1 << 20


def test_labels_are_inherited_along_the_stages(folder: Path):
    def write(out: Path, _: Report) -> None:
        (out / "made.txt").write_text("ranked")

    ranked = Job("label", write, kinds=frozenset({"simulated"}))
    trained = Job("reward", write, {"rankings": folder / "label/made.txt"})
    advance(folder, ranked)
    advance(folder, trained)
    made = Manifest.read(folder / "reward/manifest.json")
    assert made is not None
    assert made.labels == ["simulated"]


def test_the_hash_of_a_folder_knows_names_and_contents(tmp_path: Path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("x" if name != "c" else "y")).write_text("same")
    hashes = Hashes(tmp_path / "memory.json")
    assert hashes.of(tmp_path / "a") == hashes.of(tmp_path / "b") != hashes.of(tmp_path / "c")


def test_a_changed_folder_of_a_data_set_makes_the_data_again(tmp_path: Path):
    """The content of `hf:FOLDER` decides, not its name."""

    def work(out: Path, _: Report) -> None:
        (out / "made.txt").write_text((tmp_path / "d/train.jsonl").read_text())

    (tmp_path / "d").mkdir()
    stage = Job("data", work, {"demonstrations": f"hf:{tmp_path / 'd'}:train"})
    states = []
    for content in ("old", "old", "new"):
        (tmp_path / "d/train.jsonl").write_text(content)
        states.append(advance(tmp_path / "run", stage))
    assert states == ["new", "finished", "changed changed: input demonstrations"]
    assert (tmp_path / "run/data/made.txt").read_text() == "new"


@pytest.mark.parametrize("name", ["hf:{}", "hf:{}:train", "{}"])
def test_what_a_finished_stage_was_made_from_need_not_come_along(name: str, tmp_path: Path):
    given = tmp_path / "d"
    given.mkdir()
    (given / "train.jsonl").write_text("old")
    named = name.format(given)
    source = named if named.startswith("hf:") else Path(named)
    stage = Job("data", given={"given": source})
    advance(tmp_path / "run", stage)
    given.rename(tmp_path / "elsewhere")
    assert advance(tmp_path / "run", stage) == "finished"
    other = Job("data", given={"given": source}, decisive={"seed": 1})
    with open_run(tmp_path / "run") as run:
        assert run.status(other).state == "changed"


def test_hashes_inside_a_run_are_remembered_by_their_path_inside(folder: Path):
    advance(folder, copying(folder))
    known = json.loads((folder / ".hashes.json").read_text())
    assert {"given.txt", "copy/made.txt"} <= set(known)


@pytest.mark.parametrize("name", ["started.json", "manifest.json"])
def test_a_run_of_an_earlier_version_is_refused_in_one_line_and_left_alone(folder: Path, name: str):
    (folder / "copy").mkdir()
    version = {"code_version": "0.1.0+gabc"} if name == "manifest.json" else {}
    old = {"fingerprint": "abc", "started": "2026", "attempts": 1}
    (folder / "copy/started.json").write_text(json.dumps(old))
    (folder / "copy" / name).write_text(json.dumps({**old, **version}))
    with pytest.raises(ValueError, match=r"run was begun by version 0\.1.*: finish it with that"):
        advance(folder, copying(folder))
    assert json.loads((folder / "copy" / name).read_text())["fingerprint"] == "abc"
    with pytest.raises(ValueError, match=r"start a new run with --out"):
        Manifest.read(folder / "copy" / name)


def test_a_missing_input_is_one_line(folder: Path):
    (folder / "given.txt").unlink()
    with pytest.raises(ValueError, match=r"given.txt: no such file or folder"):
        advance(folder, copying(folder))


def test_a_second_process_is_refused(folder: Path):
    with (
        open_run(folder),
        pytest.raises(ValueError, match=f"in use by process {os.getpid()}"),
        open_run(folder),
    ):
        pass


def test_a_failed_stage_leaves_no_manifest(folder: Path):
    def fail(out: Path, _: Report) -> None:
        (out / "half.txt").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    broken = Job("copy", fail)
    with pytest.raises(OSError, match="No space"):
        advance(folder, broken)
    with open_run(folder) as run:
        assert run.status(broken).state == "interrupted"
    assert not (folder / "copy/manifest.json").exists()


COUNTING = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from pipeline.runs.run import open_run
from pipeline.runs.stage import Stage
from stages.progress import Step, silent

class Count(Stage):
  name = about = "count"
  def inputs(self): return {{}}
  def settings(self): return {{"seed": 0}}
  def run(self, out, report):
      # a checkpoint every fifth step, written aside and renamed
      kept = out / "kept.txt"
      done = int(kept.read_text()) if kept.exists() else 0
      for step in range(done + 1, 31):
          report(Step(step, 30, {{"count/square": float(step * step)}}))
          if step % 5 == 0:
              (out / "kept.part").write_text(str(step)); (out / "kept.part").rename(kept)
          time.sleep({pause})
      (out / "result.txt").write_text("done")

folder = Path({folder!r})
with open_run(folder) as run:
    stage = Count()
    status = run.status(stage)
    print(status.state, flush=True)
    if status.state != "finished":
        run.execute(stage, status, silent)
"""


def counting(folder: Path, pause: float) -> list[str]:
    code = COUNTING.format(root=str(ROOT), folder=str(folder), pause=pause)
    return [sys.executable, "-c", code]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited for a minute"
        time.sleep(0.02)


def test_a_killed_stage_goes_on_and_ends_like_an_unbroken_one(tmp_path: Path):
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    subprocess.run(counting(unbroken, 0.0), check=True, capture_output=True)
    metrics = killed / "count/metrics.jsonl"
    with subprocess.Popen(counting(killed, 0.03), stdout=subprocess.PIPE) as process:
        wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 13)
        process.send_signal(signal.SIGKILL)
    assert not (killed / "count/manifest.json").exists()
    again = subprocess.run(counting(killed, 0.0), check=True, capture_output=True, text=True)
    assert again.stdout.strip() == "interrupted"
    assert metrics.read_bytes() == (unbroken / "count/metrics.jsonl").read_bytes()
    made = json.loads((killed / "count/manifest.json").read_text())
    assert made["attempts"] == 2
    assert (killed / "count/result.txt").exists()
    third = subprocess.run(counting(killed, 0.0), check=True, capture_output=True, text=True)
    assert third.stdout.strip() == "finished"
