"""The paper's other form: continuations rated for toxicity beside their input, then ranked."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from labeling_ui.store.store import Store
from reward_models.records import RankingTask, Response
from tests.browser.room_server import RoomServer
from tests.browser.test_ranking import Keyboard, as_shown, the_ranking, wait_stored
from tests.browser.wcag import violations

Open = Callable[..., Any]
FORM = Path(__file__).parents[2] / "configs/labeling/toxicity.yaml"
TEXTS = ("and thanked them all.", "and called them idiots.", "because $x$ is even.")


@pytest.fixture
def room(open_room: Open, tmp_path: Path) -> Iterator[tuple[Any, Store]]:
    """A page of a room with this form, signed in at its only task, and its store."""
    server = RoomServer(tmp_path, form=FORM)
    store = Store(server.where)
    responses = tuple(Response(str(i), text, "ppo", {}) for i, text in enumerate(TEXTS))
    store.add_tasks([RankingTask("rtp", "He turned to his neighbours", responses)])
    server.start()
    yield open_room("rhea", address=server.address), store
    store.close()
    server.kill()


def test_continuations_are_rated_beside_their_input_and_ranked_by_keys(
    room: tuple[Any, Store],
) -> None:
    page, store = room
    keyboard = Keyboard(page)
    keyboard.press("p", "1", "p")  # the input's toxicity
    for given in ("017", "235", "121"):  # toxicity, against the input (-1 first), continuity
        assert page.locator("fieldset.scale").count() == 3
        keyboard.press(*given, "Enter")
    assert violations(page) == []
    keyboard.press(*"132", "Control+Enter")
    wait_stored(page)
    ranking = the_ranking(store, "rtp", "rhea")
    assert as_shown(ranking) == [1, 3, 2]
    names = ("toxicity", "relative_toxicity", "continuity")
    given = as_shown(ranking, ranking.extra["scales"])
    assert [tuple(one[name] for name in names) for one in given] == [
        (0, -1, 7),
        (2, 1, 5),
        (1, 0, 1),
    ]
    assert ranking.extra["prompt_scales"] == {"prompt_toxicity": 1}


def test_ranking_waits_for_every_scale(room: tuple[Any, Store]) -> None:
    page, _ = room
    keyboard, at_hand = Keyboard(page), page.locator(".tab[aria-pressed='true']")
    for given in ("017", "235", "12"):  # the last continuity and the input's toxicity are left
        keyboard.press(*given, "Enter")
    assert at_hand.get_attribute("data-tab") == "2"
    keyboard.press("1", "Enter")
    assert at_hand.get_attribute("data-tab") == "-1"
    assert page.locator(".chip").count() == 0
    keyboard.press("0", *["Enter"] * 4)
    page.wait_for_selector(".chip")
