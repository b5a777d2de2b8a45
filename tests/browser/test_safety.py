"""Nothing that a model wrote runs, nothing leaves for elsewhere, and everyone can use the page."""

from collections.abc import Callable
from importlib.resources import files
from typing import Any

from labeling_ui.store import Store
from reward_models.records import RankingTask, Response
from tests.browser.examples import task
from tests.browser.hostile import HOSTILE
from tests.browser.room_server import RoomServer
from tests.browser.test_ranking import Keyboard, rate_all, wait_stored

Give = Callable[..., None]
Open = Callable[..., Any]
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


def hostile_tasks() -> list[RankingTask]:
    """All hostile texts as outputs, and each also as a prompt or a context somewhere."""
    tasks = []
    for start in range(0, len(HOSTILE), 9):
        texts = [*HOSTILE[start : start + 9], "harmless"][:9]
        outputs = tuple(Response(f"{start}-{i}", text, "m", {}) for i, text in enumerate(texts))
        prompt, context = "\n\n".join(texts), texts[start % len(texts)]
        tasks.append(RankingTask(f"hostile-{start}", prompt, outputs, context=context))
    return tasks


def as_a_browser_reads(text: str) -> str:
    """HTML has no NUL and no lone carriage return; all else is kept."""
    return text.replace("\x00", "\ufffd")


def test_no_hostile_text_runs_or_loads_anything_and_each_is_shown_whole(
    give: Give, open_room: Open, store: Store, server: RoomServer
) -> None:
    tasks = hostile_tasks()
    give(*tasks)
    page = open_room("<img src=x onerror=window.__ran=0>")
    shown: set[str] = set()
    for one in tasks:
        keyboard = Keyboard(page)
        rate_all(keyboard, "4" * len(one.responses))
        page.wait_for_selector(".cards")
        page.locator(".card .text a").evaluate_all("links => links.forEach(a => a.href)")
        keyboard.press("r")
        texts = page.locator(".card .text.raw").evaluate_all("all => all.map(e => e.textContent)")
        shown.update(texts)
        keyboard.press("r")
        assert page.evaluate("window.__ran") is None
        keyboard.press(*"123456789"[: len(one.responses)], "Control+Enter")
        wait_stored(page)
        page.locator(".toast").evaluate("toast => { toast.hidden = true; }")
    assert {as_a_browser_reads(text) for text in HOSTILE} <= shown
    assert page.evaluate("window.__ran") is None
    foreign = {url for url in page.asked if not url.startswith((server.address, "data:"))}
    assert foreign == set()
    links = page.locator(".room .text a").evaluate_all("all => all.map(a => a.protocol)")
    assert set(links) <= {"http:", "https:", "mailto:"}
    assert len([r for r in store.rankings() if r.task.startswith("hostile")]) == len(tasks)


def test_no_name_of_a_model_and_no_id_reaches_the_page(give: Give, open_room: Open) -> None:
    give(task("blind", 5))
    replies: list[str] = []
    page = open_room("bea")
    page.on("response", lambda r: replies.append(r.text()) if "component_server" in r.url else None)
    page.reload()
    page.wait_for_selector(".room .tab")
    assert any("lighthouse" in reply for reply in replies)
    assert not any("secret-model" in reply or "blind-" in reply for reply in replies)


def violations(page: Any) -> list[str]:
    """What axe finds against WCAG 2.2 AA."""
    source = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    page.evaluate(source)
    found = page.evaluate(
        "rules => axe.run(document, {runOnly: {type: 'tag', values: rules}})", RULES
    )["violations"]
    return [f"{v['id']}: {node['html'][:120]}" for v in found for node in v["nodes"]]


def test_the_pages_meet_wcag_in_light_and_dark(
    give: Give, open_room: Open, browser: Any, server: RoomServer
) -> None:
    door = browser.new_page()
    door.goto(f"{server.address}/login")
    assert violations(door) == []
    door.close()
    give(task("wcag", 9, with_context=True))
    page = open_room("wes")
    for _ in ("light", "dark"):
        keyboard = Keyboard(page)
        keyboard.press("h", "c")
        assert violations(page) == []
        page.keyboard.press("?")
        assert violations(page) == []
        page.keyboard.press("Escape")
        rate_all(keyboard, "123456777")
        keyboard.press("9", "1", "1")
        assert violations(page) == []
        page.evaluate("document.querySelector('.room').dataset.theme = 'dark'")
        page.locator(".step").first.click()
        keyboard.press("ArrowLeft", *["ArrowLeft"] * 8)
