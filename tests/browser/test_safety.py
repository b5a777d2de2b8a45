"""Nothing that a model wrote runs, nothing leaves for elsewhere, and everyone can use the page."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from labeling_ui.store.accounts import Accounts
from labeling_ui.store.store import Store
from reward_models.records import RankingTask, Response
from tests.browser.examples import task
from tests.browser.hostile import HOSTILE
from tests.browser.room_server import RoomServer
from tests.browser.test_ranking import Keyboard, rate_all, wait_stored
from tests.browser.wcag import violations

Give = Callable[..., None]
Open = Callable[..., Any]


def hostile_tasks() -> list[RankingTask]:
    """All hostile texts as outputs, and each also as a prompt or a context somewhere."""
    tasks = []
    for start in range(0, len(HOSTILE), 9):
        texts = [*HOSTILE[start : start + 9], "harmless"][:9]
        outputs = tuple(Response(f"{start}-{i}", text, "m", {}) for i, text in enumerate(texts))
        prompt, context = "\n\n".join(texts), texts[start % len(texts)]
        tasks.append(RankingTask(f"hostile-{start}", prompt, outputs, context=context))
    return tasks


def foreign_urls(page: Any, server: RoomServer) -> set[str]:
    return {url for url in page.requested_urls if not url.startswith((server.address, "data:"))}


def as_a_browser_reads(text: str) -> str:
    """HTML has no NUL and no lone carriage return; all else is kept."""
    return text.replace("\x00", "\ufffd")


def test_no_hostile_text_runs_or_loads_anything_and_each_is_shown_whole(
    give: Give, open_room: Open, store: Store, server: RoomServer
) -> None:
    tasks = hostile_tasks()
    give(*tasks)
    page = open_room("<img src=x onerror=window.__ran=0>")
    texts_on_page: set[str] = set()
    for one in tasks:
        keyboard = Keyboard(page)
        for response in sorted(one.responses, key=lambda r: r.id):
            page.fill("[data-part=note]", response.text)  # as a note as well
            keyboard.press("Escape", "4", "Enter")
        page.wait_for_selector(".cards")
        keyboard.press("a", "Shift+B")  # marked side by side as well
        page.wait_for_selector("[data-part=differences]:not(:empty)")
        keyboard.press("v")
        page.locator(".card .text a").evaluate_all("links => links.forEach(a => a.href)")
        keyboard.press("r")
        texts = page.locator(".card .text.raw").evaluate_all("all => all.map(e => e.textContent)")
        texts_on_page.update(texts)
        keyboard.press("r")
        assert page.evaluate("window.__ran") is None
        keyboard.press(*"123456789"[: len(one.responses)], "Control+Enter")
        wait_stored(page)
        page.locator(".toast").evaluate("toast => { toast.hidden = true; }")
    assert {as_a_browser_reads(text) for text in HOSTILE} <= texts_on_page
    assert page.evaluate("window.__ran") is None
    assert foreign_urls(page, server) == set()
    links = page.locator(".room .text a").evaluate_all("all => all.map(a => a.protocol)")
    assert set(links) <= {"http:", "https:", "mailto:"}
    done = [r for r in store.rankings() if r.task.startswith("hostile")]
    assert len(done) == len(tasks)
    noted = {note for ranking in done for note in ranking.extra["output_notes"].values()}
    assert {text.strip() for text in HOSTILE} <= noted
    page.get_by_role("button", name="Earlier").click()
    page.locator("dialog .earlier").first.click()
    page.wait_for_selector(".notice:not([hidden])")
    page.locator(".step").first.click()
    assert page.input_value("[data-part=note]") in noted
    assert page.evaluate("window.__ran") is None
    assert server.outside_hosts() == []


def test_hostile_names_are_only_names(open_room: Open, store: Store, server: RoomServer) -> None:
    accounts = Accounts(store)
    names = set()
    for text in HOSTILE:
        with suppress(ValueError):  # a few cannot be names at all
            names.add(accounts.add(text[:60], "annotator").name)
    assert len(names) >= 40
    accounts.add("nora", "owner", "correct horse")
    page = open_room("nora", "correct horse")
    page.goto(f"{server.address}/login")
    page.fill("#name", "<img src=x onerror=window.__ran=1>")
    page.fill("#password", "wrong")
    page.click("button")
    assert page.input_value("#name") == "<img src=x onerror=window.__ran=1>"
    page.goto(f"{server.address}/owner")
    page.wait_for_selector(".tiles")
    cells = page.locator("tbody th").evaluate_all("all => all.map(e => e.firstChild.textContent)")
    assert names <= set(cells)
    assert page.evaluate("window.__ran") is None
    assert foreign_urls(page, server) == set()


def test_the_watch_over_the_server_sees_what_it_is_for(tmp_path: Path) -> None:
    code = (
        "import socket, sys; from pathlib import Path\n"
        "from tests.browser.nothing_outside import OutsideError, watch\n"
        "watch(Path(sys.argv[1]))\n"
        "for ask in (lambda: socket.create_connection(('192.0.2.1', 9)),"
        " lambda: socket.getaddrinfo('example.org', 80)):\n"
        "    try: ask()\n"
        "    except OutsideError: pass\n"
    )
    log = tmp_path / "log"
    subprocess.run(
        [sys.executable, "-c", code, str(log)], check=True, cwd=Path(__file__).parents[2]
    )
    seen = log.read_text()
    assert "192.0.2.1" in seen
    assert "example.org" in seen


def test_no_name_of_a_model_and_no_id_reaches_the_page(give: Give, open_room: Open) -> None:
    give(task("blind", 5))
    replies: list[str] = []
    page = open_room("bea")
    page.on("response", lambda r: replies.append(r.text()) if "component_server" in r.url else None)
    page.reload()
    page.wait_for_selector(".room .tab")
    assert any("lighthouse" in reply for reply in replies)
    assert not any("secret-model" in reply or "blind-" in reply for reply in replies)


def test_the_pages_meet_wcag_in_light_and_dark(
    give: Give, open_room: Open, browser: Any, server: RoomServer
) -> None:
    login_page = browser.new_page()
    login_page.goto(f"{server.address}/login")
    assert violations(login_page) == []
    login_page.close()
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
