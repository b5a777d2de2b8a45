"""Outputs ranked in a real browser, by keys, mouse and finger; what was done is what is stored."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from labeling_ui.store.store import Store
from reward_models.records import Ranking, RankingTask, Response
from tests.browser.examples import task
from tests.browser.wcag import violations

Give = Callable[..., None]
Open = Callable[..., Any]


class Keyboard:
    """Presses keys and counts them."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.pressed = 0

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
            self.pressed += 1


def the_ranking(store: Store, name: str, annotator: str) -> Ranking:
    (ranking,) = [r for r in store.rankings() if (r.task, r.annotator) == (name, annotator)]
    return ranking


def as_shown(ranking: Ranking, values: Mapping[str, Any] | None = None) -> list[Any]:
    """Return the ranks, or other values by response, in the order on the screen."""
    assert ranking.shown_order is not None
    return [(ranking.ranks if values is None else values)[name] for name in ranking.shown_order]


def wait_stored(page: Any) -> None:
    page.wait_for_selector(".toast:not([hidden])")


def rate_all(keyboard: Keyboard, ratings: str) -> None:
    for rating in ratings:
        keyboard.press(rating, "Enter")


def rank_all(page: Any, ratings: str, digits: str) -> None:
    """Rate and rank a task by keys, and wait until it is stored."""
    keyboard = Keyboard(page)
    rate_all(keyboard, ratings)
    keyboard.press(*digits, "Control+Enter")
    wait_stored(page)


@pytest.mark.parametrize(
    ("num_outputs", "ratings", "digits", "keys"),
    [(4, "7153", "1423", 13), (9, "765432111", "112334455", 28)],
)
def test_outputs_are_ranked_with_ties_by_keys_alone(
    give: Give,
    open_room: Open,
    store: Store,
    num_outputs: int,
    ratings: str,
    digits: str,
    keys: int,
) -> None:
    name = f"keys-{num_outputs}"
    give(task(name, num_outputs), task(f"{name}-next", 5))
    page = open_room(f"kay{num_outputs}")
    keyboard = Keyboard(page)
    rate_all(keyboard, ratings)
    keyboard.press(*digits, "Control+Enter")
    wait_stored(page)
    assert keyboard.pressed == keys
    ranking = the_ranking(store, name, f"kay{num_outputs}")
    assert as_shown(ranking) == [int(digit) for digit in digits]
    assert "".join(map(str, as_shown(ranking, ranking.ratings))) == ratings
    assert ranking.kind == "human"
    assert page.locator(".tab:not([data-tab='-1'])").count() == 5


def test_the_stored_order_is_the_order_on_the_screen(
    give: Give, open_room: Open, store: Store
) -> None:
    nine = task("shown", 9)
    give(nine)
    page = open_room("sam")
    keyboard = Keyboard(page)
    rate_all(keyboard, "4" * 9)
    keyboard.press("r")
    seen = page.locator(".card .text").all_text_contents()
    keyboard.press(*"123456789", "Control+Enter")
    wait_stored(page)
    ranking = the_ranking(store, "shown", "sam")
    texts = {response.id: response.text for response in nine.responses}
    assert seen == as_shown(ranking, texts)


def test_flags_notes_and_questions_about_the_prompt_are_stored(
    give: Give, open_room: Open, store: Store
) -> None:
    give(task("flags", 4))
    page = open_room("flo")
    keyboard = Keyboard(page)
    keyboard.press("h", "v", "v", "c", "n")
    page.keyboard.type("made up ünïcode 🙂")
    keyboard.press("Escape", "p", "c", "0", "p", "2", "Enter", "0")
    assert page.locator("[data-part=open]").inner_text() == "1 unanswered"
    rate_all(keyboard, "345")
    keyboard.press(*"4321", "Control+Enter")
    wait_stored(page)
    ranking = the_ranking(store, "flags", "flo")
    assert ranking.shown_order is not None
    first, second = ranking.shown_order[:2]
    assert set(ranking.flags[first]) == {"hallucination", "satisfies_constraint"}
    assert ranking.extra["flags_no"][first] == ["violent"]
    assert len(ranking.extra["flags_no"][second]) == 10
    assert "satisfies_constraint" not in ranking.extra["flags_no"][second]  # nobody said so
    assert ranking.extra["output_notes"] == {first: "made up ünïcode 🙂"}
    about = ranking.extra["prompt_flags"]
    assert about["closed_domain"] is True
    assert sum(value is False for value in about.values()) == 10


def test_outputs_are_ranked_by_mouse(give: Give, open_room: Open, store: Store) -> None:
    give(task("mouse", 9))
    page = open_room("mia")
    for i, letter in enumerate("ABCDEFGHI"):
        page.locator(f".tab[data-tab='{i}']:has-text('{letter}')").click()
        page.locator(".choice").nth(3).click()
    page.locator("[data-part=next]").click()
    digits = [1, 0, 1, 2, 3, 3, 3, 4, 5]
    for i, tier in enumerate(digits):
        page.locator(f".row[data-tier='{tier}']").scroll_into_view_if_needed()
        chip = page.locator(f".chip[data-output='{i}']").bounding_box()
        row = page.locator(f".row[data-tier='{tier}']").bounding_box()
        page.mouse.move(chip["x"] + 10, chip["y"] + 10)
        page.mouse.down()
        page.mouse.move(row["x"] + 200, row["y"] + 20, steps=6)
        page.mouse.up()
        page.wait_for_selector(f".row[data-tier='{tier}'] .chip[data-output='{i}']")
    page.locator("[data-part=submit]").click()
    wait_stored(page)
    assert as_shown(the_ranking(store, "mouse", "mia")) == [digit + 1 for digit in digits]


def test_outputs_are_ranked_by_finger_on_a_phone(give: Give, open_room: Open, store: Store) -> None:
    give(task("touch", 9))
    page = open_room("tom", viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    for _ in range(9):
        page.locator(".choice").nth(4).tap()
        page.locator("[data-part=next]").tap()
    assert violations(page) == []
    drag_by_finger(page, ".chip[data-output='3']", ".row[data-tier='0']")
    page.wait_for_selector(".row[data-tier='0'] .chip[data-output='3']")
    for i, tier in ((0, 1), (1, 1), (2, 2), (4, 3), (5, 3), (6, 4), (7, 5), (8, 6)):
        page.locator(f".chip[data-output='{i}']").tap()
        page.locator(f".row[data-tier='{tier}'] .label").tap()
        page.wait_for_selector(f".row[data-tier='{tier}'] .chip[data-output='{i}']")
    page.locator("[data-part=undo]").tap()
    page.wait_for_selector(".row[data-tier='-1'] .chip[data-output='8']")
    page.locator("[data-part=redo]").tap()
    page.wait_for_selector(".row[data-tier='6'] .chip[data-output='8']")
    page.locator("[data-part=submit]").tap()
    wait_stored(page)
    assert as_shown(the_ranking(store, "touch", "tom")) == [2, 2, 3, 1, 4, 4, 5, 6, 7]


def drag_by_finger(page: Any, source: str, target: str) -> None:
    start, end = page.locator(source).bounding_box(), page.locator(target).bounding_box()
    client = page.context.new_cdp_session(page)
    x, y = start["x"] + 12, start["y"] + 12
    to_x, to_y = end["x"] + end["width"] / 2, end["y"] + 20

    def touch(kind: str, *points: dict[str, float]) -> None:
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": list(points)})

    touch("touchStart", {"x": x, "y": y})
    for step in range(1, 7):
        touch("touchMove", {"x": x + (to_x - x) * step / 6, "y": y + (to_y - y) * step / 6})
    touch("touchEnd")


def test_a_stored_ranking_can_be_changed_and_its_history_is_kept(
    give: Give, open_room: Open, store: Store
) -> None:
    give(task("amend", 4), task("amend-next", 4))
    page = open_room("amy")
    rank_all(page, "4444", "1234")
    page.locator(".toast .button").click()
    page.wait_for_selector(".notice:not([hidden])")
    assert page.locator(".row[data-tier='3'] .chip[data-output='3']").count() == 0
    page.locator(".step").nth(1).click()
    Keyboard(page).press("d", "1", "Control+Enter")
    page.wait_for_selector(".notice", state="hidden")
    wait_stored(page)
    assert as_shown(the_ranking(store, "amend", "amy")) == [1, 2, 3, 1]
    assert [as_shown(r) for r in store.history("amend", "amy")] == [
        [1, 2, 3, 4],
        [1, 2, 3, 1],
    ]


def test_a_task_is_skipped_with_a_reason(give: Give, open_room: Open, store: Store) -> None:
    give(task("skip", 4), task("skip-next", 5))
    page = open_room("sue")
    page.get_by_role("button", name="Skip").click()
    page.get_by_role("button", name="Not my language").click()
    wait_stored(page)
    (skipped,) = [r for r in store.rankings(skipped=True) if r.annotator == "sue"]
    assert (skipped.task, skipped.skipped, skipped.ranks) == ("skip", "Not my language", {})
    assert page.locator(".tab:not([data-tab='-1'])").count() == 5


def test_enter_after_a_skip_skips_nothing_and_the_skip_can_be_taken_back(
    give: Give, open_room: Open, store: Store
) -> None:
    give(task("skipped", 4), task("unread", 5))
    page = open_room("sid", viewport={"width": 1280, "height": 720})
    keyboard = Keyboard(page)
    page.get_by_role("button", name="Skip").click()
    keyboard.press("Enter")
    assert page.locator("dialog[open]").count() == 1
    page.get_by_role("button", name="Not my language").click()
    wait_stored(page)
    keyboard.press("Enter", "Enter", "3", "Enter")
    assert page.locator("dialog[open]").count() == 0
    assert "Not my language" not in page.locator(".room").inner_text()
    assert page.evaluate("document.activeElement.className") == "stage"
    inside = "document.querySelector('.bar').contains(document.querySelector('.toast'))"
    assert page.evaluate(inside)  # it covers nothing of the work
    page.get_by_role("button", name="Take it back").click()
    page.wait_for_function("document.querySelectorAll('.tab').length === 5")
    rate_all(keyboard, "4444")
    keyboard.press(*"1234", "Control+Enter")
    wait_stored(page)
    assert as_shown(the_ranking(store, "skipped", "sid")) == [1, 2, 3, 4]


def test_keys_scroll_the_text_and_take_changes_back_and_make_them_again(
    give: Give, open_room: Open
) -> None:
    texts = ("", "| Season | Time |\n|---|---|\n| 2011 | one |", "Long. " * 900)
    outputs = tuple(Response(str(i), text, "m", {}) for i, text in enumerate(texts))
    give(RankingTask("scrolled", "Which?", outputs))
    page = open_room("rue", viewport={"width": 1000, "height": 640})
    keyboard = Keyboard(page)
    pane = ".read .scroll"
    while "Long." not in page.locator(pane).inner_text():
        keyboard.press("4", "Enter")
    scrolled = f"document.querySelector('{pane}').scrollTop"
    keyboard.press("PageDown", "ArrowDown")
    down = page.evaluate(scrolled)
    assert down > 100
    keyboard.press("Shift+Space")
    assert page.evaluate(scrolled) < down
    keyboard.press("4", "Enter")
    while page.locator(".cards").count() == 0:
        keyboard.press("4", "Enter")
    assert page.locator(".card:has-text('(empty)')").count() == 1
    cut = "all => all.filter((e) => e.scrollWidth > e.clientWidth || e.clientHeight > 40).length"
    assert page.locator(".card th").evaluate_all(cut) == 0
    long = page.locator(".card:has-text('Long.')")
    keyboard.press("abc"[int(long.get_attribute("data-output"))], "PageDown")
    assert long.locator(".scroll").evaluate("e => e.scrollTop") > 20
    keyboard.press("a", "1", "2", "Control+z", "Control+z")
    assert page.locator(".row.tray .chip").count() == 3
    keyboard.press("Control+Shift+z")
    assert page.locator(".row[data-tier='0'] .chip[data-output='0']").count() == 1
    keyboard.press("Control+Shift+z", "Control+Shift+z")
    assert page.locator(".row.tray .chip").count() == 1
