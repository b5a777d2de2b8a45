"""Fixtures that several tests of pages share."""

from pathlib import Path

import pytest

from tests.pipeline.made_up_run import write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "my-run"
    write_run(folder)
    return folder
