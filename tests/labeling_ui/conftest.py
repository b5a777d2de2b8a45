"""A store of its own for each test: first a file, then a database of a real PostgreSQL server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from labeling_ui.store.store import Store
from tests.postgres_server import PostgresServer, binaries


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests; they are skipped, saying so, where PostgreSQL is not installed."""
    if binaries() is None:
        pytest.skip("PostgreSQL's server is not installed (apt-get install postgresql)")
    server = PostgresServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "labels.sqlite")
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.emptied()


@pytest.fixture
def store(where: str) -> Iterator[Store]:
    opened = Store(where)
    yield opened
    opened.close()
