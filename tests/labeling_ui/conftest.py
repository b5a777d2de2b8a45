"""A store of its own for each test: a file, or the PostgreSQL that LABELING_TEST_DATABASE names."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from labeling_ui.store import Store


@pytest.fixture
def where(tmp_path: Path) -> str:
    url = os.environ.get("LABELING_TEST_DATABASE")
    if url is None:
        return str(tmp_path / "labels.sqlite")
    engine = create_engine(url)  # postgresql+psycopg://...: its public schema is emptied
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return url


@pytest.fixture
def store(where: str) -> Iterator[Store]:
    opened = Store(where)
    yield opened
    opened.close()
