"""After a practice task the right order and its reason are shown in the page."""

import random
from collections.abc import Callable
from typing import Any

from labeling_ui.store.store import Store
from labeling_ui.tasks.assignment import Assignment
from tests.browser.examples import task
from tests.browser.test_ranking import Keyboard, rate_all
from tests.browser.wcag import violations


def test_practice_is_explained_after_it_is_sent(
    open_room: Callable[..., Any], store: Store
) -> None:
    lesson = task("lesson", 2)
    names = [response.id for response in lesson.responses]
    store.add_tasks(
        [lesson],
        gold={"lesson": {names[0]: 1, names[1]: 2}},
        lessons={"lesson": "the second *makes things up*"},
        is_open=False,  # for nobody else of this server
    )
    lease = Assignment(store, rng=random.Random(0)).take("pia", "lesson")
    page = open_room("pia")
    assert "makes things up" not in page.content()
    keyboard = Keyboard(page)
    rate_all(keyboard, "53")
    right = [str(1 + names.index(name)) for name in lease.shown_order]
    keyboard.press(*reversed(right), "Control+Enter")
    dialog = page.locator("dialog[open]")
    dialog.get_by_text("makes things up").wait_for()
    assert "0 of 1 pairs as they should be." in dialog.inner_text()
    cells = dialog.locator("td").all_inner_texts()
    assert cells == ["1", "2", "2", "1"]  # right rank, one's own
    assert violations(page) == []
    dialog.get_by_role("button", name="Close").click()
    page.wait_for_selector("dialog[open]", state="detached")
