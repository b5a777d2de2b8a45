"""Processes that a test of real launches started end with it."""

from collections.abc import Iterator

import pytest

from tests.distributed.launched import end_all


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    """Also where the test failed half-way."""
    yield
    end_all()
