"""Errors of libraries become one line."""

import pytest

from reward_models.model_files import first_line


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no such layer\nTry another."), "no such layer"),
        (OSError("\n\n  the disk is full  \n"), "the disk is full"),
        (NotImplementedError(), "NotImplementedError"),
        (RuntimeError(" \n "), "RuntimeError"),
    ],
)
def test_the_first_line_that_says_something_is_told(error: Exception, told: str) -> None:
    assert first_line(error) == told
