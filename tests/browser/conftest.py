"""One server for all tests here."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from labeling_ui.store.store import Store
from reward_models.records import RankingTask
from tests.browser.room_server import RoomServer

_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


def next_number() -> int:
    """A priority above all given before."""
    return next(_numbers)


@pytest.fixture(scope="session")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoomServer]:  # noqa: ARG001
    room = RoomServer(tmp_path_factory.mktemp("room"))
    room.start()
    yield room
    room.kill()
    assert room.outside_hosts() == []


@pytest.fixture(scope="session")
def store(server: RoomServer) -> Iterator[Store]:
    opened = Store(server.where)
    yield opened
    opened.close()


@pytest.fixture
def give(store: Store) -> Callable[..., None]:
    """Put tasks before all earlier ones, for the next person who asks."""

    def put(*tasks: RankingTask, overlap: int = 1) -> None:
        store.add_tasks(tasks, priority=next_number(), overlap=overlap)

    return put


@pytest.fixture
def open_room(browser: Any, server: RoomServer) -> Iterator[Callable[..., Any]]:
    """Sign in in a fresh browser profile, by a name or by a password, and wait for the page."""
    contexts: list[Any] = []
    refused: list[str] = []  # scripts and loads that the page's own headers forbid

    def opened(name: str, password: str = "", address: str = "", **options: Any) -> Any:
        size = {"width": 1440, "height": 900}
        context = browser.new_context(**{"viewport": size, "locale": "en-US", **options})
        context.set_default_timeout(45_000)
        contexts.append(context)
        page = context.new_page()
        page.requested_urls = []
        page.on("request", lambda request: page.requested_urls.append(request.url))
        page.on(
            "console", lambda line: refused.append(line.text) if "Policy" in line.text else None
        )
        page.goto(f"{address or server.address}/")
        page.fill("#name", name)
        page.fill("#password", password)
        page.click("button")
        page.wait_for_selector(".room .panels, .room .wait .button")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert refused == []
