"""`rlhf compare`: side by side, and paired wherever two runs answered the same prompts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.compare import comparison_table, paired
from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.samples.results import Results, write_results
from pipeline.evaluation.samples.tables import Resampling
from reward_models.atomic_files import write_jsonl

META = {"judge": {"version": "1", "sha256": "x", "threshold": None}}


def run(folder: Path, values: Sequence[float], *, start: int = 0, version: str = "1") -> Path:
    folder.mkdir()
    rows = [
        Completion(
            id=str(i),
            model="ppo",
            prompt=f"prompt {i}",
            completion=f"said {i}",
            scores={"judge": {"rude": value}},
            score_meta={"judge": {**META["judge"], "version": version}},
        )
        for i, value in enumerate(values, start)
    ]
    write_jsonl(folder / "samples.jsonl", (row.to_json() for row in rows))
    write_results(Results([], [], META), folder / "results.json")
    return folder


def test_runs_are_compared_on_common_prompts_and_the_loss_is_said(tmp_path: Path):
    draw = np.random.default_rng(0)
    base = draw.random(60)
    a = run(tmp_path / "a", base.tolist())
    b = run(tmp_path / "b", (base[10:] - 0.2 + 0.01 * draw.random(50)).tolist(), start=10)
    (comparison,), notes = paired(a / "samples.jsonl", b / "samples.jsonl", Resampling(500, 500))
    assert (comparison.a, comparison.b, comparison.n, comparison.verdict) == (
        "B:ppo",
        "A:ppo",
        50,
        "reduction",
    )
    assert comparison.diff == pytest.approx(-0.195, abs=0.002)
    assert comparison.ci95[0] < comparison.diff < comparison.ci95[1] < 0
    assert any("of 60 prompts B:ppo lacks 10; compared on the 50" in n for n in notes)
    text = comparison_table([a, b])
    assert "paired by prompt" in text
    assert "B:ppo lacks 10" in text


def test_a_run_differs_from_itself_by_nothing(tmp_path: Path):
    values = np.random.default_rng(1).random(30).tolist()
    a, b = run(tmp_path / "a", values), run(tmp_path / "b", values)
    (comparison,), _ = paired(a / "samples.jsonl", b / "samples.jsonl", Resampling(200, 200))
    assert (comparison.diff, comparison.p, comparison.verdict) == (0, 1, "no difference shown")


def test_other_prompts_another_scorer_and_no_samples_are_not_paired(tmp_path: Path):
    a = run(tmp_path / "a", [0.1, 0.2])
    assert "nothing in common to pair" in comparison_table([a, run(tmp_path / "b", [0.1], start=5)])
    text = comparison_table([a, run(tmp_path / "c", [0.1, 0.2], version="2")])
    assert "judge differs between the runs" in text
    (tmp_path / "c" / "samples.jsonl").unlink()
    assert "is not there" in comparison_table([a, tmp_path / "c"])
