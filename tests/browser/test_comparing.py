"""Outputs read at full height, and any two side by side: by keys, mouse and finger."""

from collections.abc import Callable
from typing import Any

import pytest

from labeling_ui.store.store import Store
from reward_models.records import Ranking, RankingTask, Response
from tests.browser.conftest import next_number
from tests.browser.examples import PASSAGE, task
from tests.browser.test_kinds import check
from tests.browser.test_ranking import Keyboard, as_shown, rate_all, the_ranking, wait_stored

Give = Callable[..., None]
Open = Callable[..., Any]
PARAGRAPHS = [
    f"In the year {1800 + n} the keeper of the light wrote about wind, fog and {n} ships. " * 3
    for n in range(12)
]
STORY = "\n\n".join(PARAGRAPHS)
OTHER = "The tower is painted white, and nobody has lived in it for many years. "
CODE = f"```python\nnames = {[f'keeper_{n}' for n in range(30)]}  # of the %s\n```"
# How many lines of an output can be read without scrolling.
LINES = """() => Math.min(...[...document.querySelectorAll(".card.grown, .read")].map((card) => {
  const pane = card.querySelector(".scroll"), box = pane.getBoundingClientRect();
  const text = pane.querySelector(".text"), more = parseFloat(getComputedStyle(pane).paddingTop);
  const bottom = Math.min(box.bottom, innerHeight);
  return (bottom - box.top - more) / parseFloat(getComputedStyle(text).lineHeight);
}))"""
# The boxes of marks, those that can be seen whole where they are.
SEEN = """(selector) => [...document.querySelectorAll(selector)].filter((mark) => {
  const box = mark.getBoundingClientRect(), pane = mark.closest(".scroll").getBoundingClientRect();
  return box.top >= pane.top && box.bottom <= pane.bottom && box.left >= pane.left
    && box.right <= pane.right && box.width > 0;
}).map((mark) => mark.textContent)"""


WHOLE = """(i) => {
  const box = document.querySelector(`.card[data-output="${i}"]`).getBoundingClientRect();
  return box.left >= 0 && box.right <= innerWidth;
}"""


def outputs_of(name: str, *texts: str, prompt: str = "Tell of it.", **more: Any) -> RankingTask:
    responses = tuple(Response(f"{name}-{i}", text, "m", {}) for i, text in enumerate(texts))
    return RankingTask(name, prompt, responses, **more)


def at_rank(open_room: Open, name: str, num_outputs: int, **options: Any) -> Any:
    """Open the room and go to the step in which outputs are ranked."""
    page = open_room(name, **options)
    rate_all(Keyboard(page), "4" * num_outputs)
    page.wait_for_selector(".card.grown")
    return page


def letters_of(page: Any, *beginnings: str) -> list[str]:
    """Return the letters under which the outputs that begin so are shown, in order."""
    texts = page.locator(".card .text").all_text_contents()
    numbers = sorted(next(i for i, t in enumerate(texts) if t.startswith(b)) for b in beginnings)
    return ["ABCDEFGHI"[i] for i in numbers]


def wait_compared(page: Any) -> str:
    line = page.locator("[data-part=differences]:not(:empty)")
    line.wait_for()
    return str(line.inner_text())


def put_beside(page: Any, *letters: str) -> str:
    page.keyboard.press(letters[0].lower())
    page.keyboard.press(f"Shift+{letters[1]}")
    return wait_compared(page)


def test_one_character_that_differs_is_seen_after_two_keys(give: Give, open_room: Open) -> None:
    odd = STORY.replace("about wind, fog and 7", "about wind, fog und 7", 1)
    give(outputs_of("odd", f"A. {STORY}", f"B. {odd}", *(OTHER * n for n in range(12, 17))))
    page = at_rank(open_room, "olli", 7, viewport={"width": 1280, "height": 720})
    line = put_beside(page, *letters_of(page, "A. ", "B. "))
    assert "2 differences" in line  # the first letter, and that one
    page.keyboard.press(".")
    page.keyboard.press(".")
    assert sorted(page.evaluate(SEEN, "mark.at-hand")) == ["and", "und"]
    page.wait_for_selector(".announcements:has-text('Difference 2 of 2')")
    page.keyboard.press("m")
    assert "none" in page.locator("mark").first.evaluate(
        "mark => getComputedStyle(mark).textDecorationLine"
    )
    page.keyboard.press("Escape")
    assert page.locator(".card.grown").count() == 1
    assert page.locator("mark").count() == 0


@pytest.mark.parametrize("wrap", ["%s", "| a | b |\n|---|---|\n| x | %s |", CODE])
def test_a_difference_is_seen_without_scrolling_in_text_code_and_tables(
    wrap: str, give: Give, open_room: Open
) -> None:
    texts = [f"{STORY}\n\n{wrap % word}\n\n{STORY}" for word in ("north", "nord")]
    give(outputs_of(f"seen {wrap[:9]}", *texts, OTHER))
    page = at_rank(open_room, f"sina{wrap[:2]}", 3, viewport={"width": 1280, "height": 720})
    painted = page.locator(".card .text").all_text_contents()
    both = [letter for letter, text in zip("ABC", painted, strict=True) if "painted" not in text]
    assert "one difference" in put_beside(page, *both)
    assert sorted(page.evaluate(SEEN, "mark")) == ["nord", "north"]
    folds = page.locator(".card.grown .fold")
    assert folds.count() == 4
    assert not page.locator(".alike:has(mark)").count()
    page.keyboard.press(".")
    folds.first.click()
    assert page.locator(".card.grown .alike").first.is_visible()


def test_two_outputs_scroll_together(give: Give, open_room: Open) -> None:
    longer = STORY.replace("1803 the", "1803, long ago, when nobody counted years yet, the")
    give(outputs_of("along", STORY, longer.replace("wind", "storm")))
    page = at_rank(open_room, "anna", 2)
    put_beside(page, "A", "B")
    tops = "all => all.map((pane) => pane.scrollTop)"
    ends = "all => all.map((pane) => pane.scrollHeight - pane.clientHeight)"
    panes = page.locator(".card.grown .scroll")
    for side, other in ((0, 1), (1, 0)):
        for key in ("PageDown", "PageDown", "End", "Home"):
            panes.nth(side).focus()
            page.keyboard.press(key)
            page.wait_for_timeout(200)
            now, last = panes.evaluate_all(tops), panes.evaluate_all(ends)
            shares = [top / end for top, end in zip(now, last, strict=True)]
            assert shares[other] == pytest.approx(shares[side], abs=0.12)
            if key in ("End", "Home"):
                assert shares[other] == pytest.approx(shares[side], abs=0.01)
    page.keyboard.press(",")  # the last one
    assert page.locator("mark.at-hand").count() == 2


@pytest.mark.parametrize("context", [None, PASSAGE * 4], ids=["alone", "with a passage"])
def test_twelve_lines_are_seen_of_what_is_judged(
    context: str | None, give: Give, open_room: Open
) -> None:
    name, prompt = f"lines {context is None}", STORY[:3000]
    give(outputs_of(name, *(f"{n} {STORY}" for n in range(9)), prompt=prompt, context=context))
    page = open_room(name, viewport={"width": 1280, "height": 720})
    assert page.evaluate(LINES) >= 12
    rate_all(Keyboard(page), "4" * 9)
    page.wait_for_selector(".card.grown")
    assert page.evaluate(LINES) >= 12
    rows = page.locator(".row").evaluate_all(
        "all => all.map((r) => r.getBoundingClientRect().bottom)"
    )
    assert max(rows) <= 660  # the whole board is in sight, above its buttons
    put_beside(page, "A", "I")
    assert page.evaluate(LINES) >= 12
    assert page.evaluate("document.documentElement.scrollWidth") == 1280


def test_cards_are_dragged_and_a_chip_takes_one_to_its_card(
    give: Give, open_room: Open, store: Store
) -> None:
    give(task("drag", 5))
    page = at_rank(open_room, "dana", 5)
    for i, tier in ((4, 1), (0, 0), (2, 1), (1, 2), (3, 3)):
        card = page.locator(f".card[data-output='{i}']").bounding_box()
        row = page.locator(f".row[data-tier='{tier}']").bounding_box()
        is_grown = "grown" in page.locator(f".card[data-output='{i}']").get_attribute("class")
        page.mouse.move(card["x"] + card["width"] / 2, card["y"] + (10 if is_grown else 60))
        page.mouse.down()
        page.mouse.move(row["x"] + 120, row["y"] + 15, steps=5)
        page.mouse.up()
        page.wait_for_selector(f".row[data-tier='{tier}'] .chip[data-output='{i}']")
        page.locator(f".chip[data-output='{i}']").click()
        assert page.locator(".card.grown").get_attribute("data-output") == str(i)
    page.locator(".card:not(.grown) .put_beside").first.click()
    wait_compared(page)
    assert page.locator(".card.grown").count() == 2
    page.locator(".chip[data-output='1']").click()
    assert page.locator(".card.grown").count() == 2
    page.locator("[data-part=one_alone]").click()
    assert page.locator(".card.grown").get_attribute("data-output") == "1"
    page.locator("[data-part=submit]").click()
    wait_stored(page)
    assert as_shown(the_ranking(store, "drag", "dana")) == [1, 3, 2, 4, 2]


def test_on_a_phone_one_swipes_between_outputs_with_the_board_at_hand(
    give: Give, open_room: Open
) -> None:
    give(outputs_of("swipe", *(f"{n} {STORY}" for n in range(9)), context=PASSAGE))
    phone = {"width": 390, "height": 844}
    page = at_rank(open_room, "swen", 9, viewport=phone, has_touch=True, is_mobile=True)
    client = page.context.new_cdp_session(page)

    def touch(kind: str, *points: dict[str, float]) -> None:
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": list(points)})

    def selected(letter: str) -> None:
        page.wait_for_selector(f".chip.selected:has-text('{letter}')")
        page.wait_for_function(WHOLE, arg=ord(letter) - 65)

    middle = page.locator(".card.selected .scroll").bounding_box()
    for letter, start, end in (("B", 340, 40), ("C", 340, 40), ("B", 40, 340)):
        y = middle["y"] + 60
        touch("touchStart", {"x": start, "y": y})
        for step in range(1, 11):
            touch("touchMove", {"x": start + (end - start) * step / 10, "y": y})
        touch("touchEnd")
        selected(letter)
    rows = page.locator(".row, [data-part=submit]").evaluate_all(
        "all => all.map((row) => row.getBoundingClientRect().bottom)"
    )
    assert max(rows) <= 844
    check(page)
    page.locator(".row[data-tier='2'] .label").tap()
    page.wait_for_selector(".row[data-tier='2'] .chip:has-text('B')")
    selected("C")
    header = page.locator(".card.selected header").bounding_box()
    row = page.locator(".row[data-tier='0']").bounding_box()
    touch("touchStart", {"x": header["x"] + 150, "y": header["y"] + 15})
    page.wait_for_selector(".chip.ghost")  # a finger that stays put lifts the card
    for step in range(1, 6):
        x, y = row["x"] + 15, row["y"] + 30
        touch("touchMove", {"x": x + (5 - step) * 10, "y": y - (5 - step) * 40})
    touch("touchEnd")
    page.wait_for_selector(".row[data-tier='0'] .chip:has-text('C')")
    page.locator(".card.selected .compare_one").tap()
    wait_compared(page)
    check(page)
    assert page.locator(".card.grown").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_a_comparison_has_the_same_view(open_room: Open, store: Store) -> None:
    one = outputs_of("versus", f"{STORY} It was white.", f"{STORY} It was grey.", prompt=STORY)
    store.add_tasks([one], "comparison", priority=next_number())
    page = open_room("vera", viewport={"width": 1280, "height": 720})
    assert "one difference" in wait_compared(page)
    assert page.evaluate(LINES) >= 12
    assert sorted(page.evaluate(SEEN, "mark")) == ["grey", "white"]
    check(page)
    page.keyboard.press("r")
    page.wait_for_selector(".text.raw mark")
    page.keyboard.press(".")
    assert sorted(page.evaluate(SEEN, "mark")) == ["grey", "white"]
    page.keyboard.press("r")


def test_the_view_for_comparing_meets_wcag_and_is_in_the_list_of_keys(
    give: Give, open_room: Open, store: Store
) -> None:
    give(outputs_of("axe", STORY, STORY.replace("fog", "mist"), CODE % "north", ""))
    page = at_rank(open_room, "axel", 4)
    check(page)
    put_beside(page, "A", "B")
    page.keyboard.press(".")
    check(page)
    page.keyboard.press("?")
    for words in ("beside the selected one", "compare with", "next difference", "marks"):
        assert words in page.locator("dialog .keymap").inner_text()
    page.keyboard.press("Escape")
    assert [r for r in store.rankings() if r.annotator == "axel"] == list[Ranking]()
