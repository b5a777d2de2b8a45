"""A store in a file of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from labeling_ui.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "labels.sqlite")
    yield opened
    opened.close()
