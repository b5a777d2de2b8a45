"""The display of a run, and a stage's metrics file."""

import json
import math
import random
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.runs.display import (
    LiveDisplay,
    PlainDisplay,
    StageProgress,
    duration,
    headlines,
    progress_table,
    trained_line,
)
from pipeline.runs.run import MetricsFile
from stages.progress import Step


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_repeated_steps_replace_what_they_repeat(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    for step in range(1, 6):
        first.add(Step(step, 9, {"sft/loss": float(step)}))
    resumed = MetricsFile(path)
    resumed.add(Step(4, 9, {"sft/loss": 40.0}))
    assert [row["sft/loss"] for row in rows(path)] == [1.0, 2.0, 3.0, 40.0]


def test_what_is_said_before_the_first_step_drops_nothing(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    for _ in range(2):
        file = MetricsFile(path)
        file.add(Step(0, 0, {"sft/left_out": 2.0}))
    file.add(Step(1, 9, {"sft/loss": 1.0}))
    MetricsFile(path).add(Step(0, 0, {"sft/left_out": 3.0}))
    assert [row["step"] for row in rows(path)] == [0, 1]


def test_words_before_the_first_step_stay_where_only_some_are_said_again(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    first.add(Step(0, 0, {"ppo/trained_parameters": 8.0}))
    first.add(Step(0, 9, {"ppo/gold_score": 0.5}))
    MetricsFile(path).add(Step(0, 9, {"ppo/trained_parameters": 8.0}))
    assert rows(path) == [
        {"step": 0, "total": 9, "ppo/trained_parameters": 8.0, "ppo/gold_score": 0.5}
    ]


def test_what_was_trained_is_told_with_its_share_of_the_base():
    line = trained_line({"sft/trained_parameters": 118272.0, "sft/trained_share": 0.0863})
    assert line == "trained 118,272 parameters (8.63 % of the model)"
    assert trained_line({"sft/loss": 1.0}) == ""


def test_a_half_written_line_is_dropped(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "total": 9, "a/b": 1.0}\n{"step": 2, "to')
    MetricsFile(path).add(Step(2, 9, {"a/b": 2.0}))
    assert [row["a/b"] for row in rows(path)] == [1.0, 2.0]


def test_two_words_about_one_step_are_one_line(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.add(Step(3, 9, {"sft/loss": 1.0}))
    file.add(Step(3, 9, {"sft/validation_loss": 2.0}))
    assert rows(path) == [{"step": 3, "total": 9, "sft/loss": 1.0, "sft/validation_loss": 2.0}]


def test_what_could_not_be_computed_is_null(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path).add(Step(1, 1, {"a/b": math.nan}))
    assert rows(path)[0]["a/b"] is None


def test_loss_reward_and_kl_are_found_by_name():
    metrics = {
        "ppo/policy_loss": 0.5,
        "ppo/reward": 1.25,
        "ppo/score": 2.0,
        "ppo/kl_nats": 3.0,
        "ppo/policy_clip_fraction": 0.1,
    }
    assert headlines(metrics) == ["reward 1.25", "score 2", "KL 3", "loss 0.5"]
    assert headlines({"time/step_s": 3.0}) == []


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (75, "1:15"), (3725, "1:02:05")])
def test_durations_read_like_a_clock(seconds: float, text: str):
    assert duration(seconds) == text


def test_time_left_counts_only_the_steps_of_this_process():
    progress = StageProgress()
    progress.start -= 40.0
    progress.add(Step(50, 100))
    assert progress.left_s is None
    progress.first = (time.monotonic() - 10.0, 50)
    progress.add(Step(60, 100))
    assert progress.left_s == pytest.approx(40.0, abs=2.0)
    assert progress.clock() == "0:40, 0:40 left"


def test_plain_lines_say_begin_and_end(capsys: pytest.CaptureFixture[str]):
    plain = PlainDisplay()
    plain.begin("sft", "fine-tuning")
    plain.step(Step(1, 2, {"sft/loss": 1.5}))
    plain.finish("0:03 of CPU")
    plain.skip("ppo", "up to date")
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        "sft: fine-tuning",
        "sft: done in 0:00, loss 1.5, 0:03 of CPU",
        "ppo: up to date",
    ]


def test_the_live_display_has_a_row_a_stage():
    bars = progress_table(Console(file=StringIO()))
    live = LiveDisplay(bars, ["data", "sft", "ppo"])
    live.skip("data", "up to date")
    live.begin("sft", "fine-tuning")
    live.step(Step(2, 12))
    live.step(Step(3, 12, {"sft/loss": 1.5}))
    out = StringIO()
    Console(file=out, width=100).print(bars.get_renderable())
    data, sft, ppo = out.getvalue().splitlines()
    assert data.split()[:2] == ["✓", "data"]
    assert "up to date" in data
    assert sft.split()[:2] == ["▸", "sft"]
    assert all(word in sft for word in ("3/12", "left", "loss 1.5"))
    assert ppo.split()[:2] == ["·", "ppo"]


def counts(steps: list[Step]) -> list[tuple[int, int]]:
    progress, seen = StageProgress(), []
    for step in steps:
        progress.add(step)
        seen.append((progress.done, progress.total))
    return seen


@pytest.mark.parametrize("seed", range(50))
def test_whatever_steps_come_the_count_that_is_shown_never_runs_backwards(seed: int):
    rng = random.Random(seed)
    steps = [
        Step(rng.randint(0, 12), rng.randint(0, 10), doing="x" * rng.randint(0, 1))
        for _ in range(40)
    ]
    pairs = counts(steps)
    assert pairs == sorted(pairs, key=lambda pair: pair[0])
    assert [total for _, total in pairs] == sorted(total for _, total in pairs)
    assert all(done <= total for done, total in pairs)


def test_an_iteration_that_is_done_again_after_a_rollback_does_not_count_down():
    assert counts([Step(n, 9) for n in (1, 2, 3, 4, 3, 4, 5)])[-3:] == [(4, 9), (4, 9), (5, 9)]


NAMES = ["data", "sft", "sample", "label", "reward", "select", "ppo", "ppo-ptx", "evaluate"]
METRICS = {
    "ppo/policy_loss": -0.01234,
    "ppo/reward": -1.25,
    "ppo/score": 0.0916,
    "ppo/kl_nats": 13.1,
    "ppo/trained_parameters": 134515008.0,
    "ppo/trained_share": 1.0,
}


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_at_no_width_is_a_row_of_the_live_display_wrapped_or_a_word_of_it_cut(width: int):
    out = StringIO()
    console = Console(file=out, width=width, force_terminal=False)
    bars = progress_table(console)
    live = LiveDisplay(bars, NAMES)
    doing = "scoring the responses to held-out prompts, 12 of 240"
    about = "PPO with pretraining mix, restarts, changed: ppo.kl.coefficient"
    note = "1:02:03 of CPU time, 5.4 GiB of memory"
    live.skip("data", "up to date")
    for name in NAMES[1:-1]:
        live.begin(name, about)
        live.step(Step(9404, 9999, METRICS, doing if name == "reward" else ""))
        if name != "ppo-ptx":
            live.finish(note)
    console.print(bars.get_renderable())
    lines = out.getvalue().splitlines()
    assert len(lines) == len(NAMES)
    assert max(len(line.rstrip()) for line in lines) <= width
    assert "…" not in out.getvalue()
    known = {*about.split(", "), *note.split(", "), doing, "up to date"}
    known |= {*headlines(METRICS), trained_line(METRICS)}
    for line in lines:
        words = line.rstrip().rpartition("   ")[2] if "0:00" not in line else ""
        parts = line.rstrip().partition("0:00 ")[2].replace("left", "", 1).strip() or words
        for part in filter(None, parts.split(" · ")):
            assert part in known or set(part) <= set("━╸ ·" + "".join(NAMES)), part


def test_work_that_takes_long_is_told_without_a_step(capsys: pytest.CaptureFixture[str]):
    plain = PlainDisplay()
    plain.begin("reward", "reward model")
    began = time.monotonic()
    plain.step(Step(3, 3, {"reward/loss": 0.5}))
    plain.step(Step(0, 0, doing="writing"))  # too short for a line
    plain._print_if_due(began + 1)
    plain.step(Step(0, 0, doing="scoring demonstrations"))
    plain._print_if_due(began + 3)
    plain.step(Step(0, 0, doing="scoring demonstrations, 64 of 400"))
    for second in range(4, 34):
        plain._print_if_due(began + second)
    plain.finish("")
    assert capsys.readouterr().err.splitlines() == [
        "reward: reward model",
        "reward: 3/3, 0:00, scoring demonstrations, loss 0.5",
        "reward: 3/3, 0:00, scoring demonstrations, 64 of 400, loss 0.5",
        "reward: 3/3, 0:00, scoring demonstrations, 64 of 400, loss 0.5",
        "reward: done in 0:00, loss 0.5",
    ]
