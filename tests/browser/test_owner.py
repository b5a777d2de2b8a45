"""The owner sees how the work goes and can stop it; nobody else sees that page."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labeling_ui.store.accounts import Accounts
from labeling_ui.store.store import Store
from reward_models.records import Ranking
from tests.browser.examples import task
from tests.browser.room_server import RoomServer
from tests.browser.wcag import violations

Give = Callable[..., None]
Open = Callable[..., Any]
PASSWORD = "a long password"


def test_the_owner_reads_pauses_invites_and_exports(
    give: Give, open_room: Open, browser: Any, store: Store, server: RoomServer, tmp_path: Path
) -> None:
    tasks = [task(f"owned-{i}", 4) for i in range(3)]
    give(*tasks, task("owned-left", 4), task("owned-more", 4))  # the owner holds one of them
    for one in tasks:
        ids = [response.id for response in one.responses]
        for name, order in (("sim-1", ids), ("sim-2", ids[::-1])):
            ranks = {i: rank for rank, i in enumerate(order, 1)}
            store.submit(Ranking(one.id, name, "simulated", ranks, shown_order=ids))
        ranks = {i: rank for rank, i in enumerate(sorted(ids), 1)}
        store.submit(Ranking(one.id, "judge:m/1", "judge", ranks, shown_order=ids))
    Accounts(store).add("olga", "owner", PASSWORD)
    page = open_room("olga", PASSWORD)
    for _ in range(40):  # the report of an earlier page may stand for half a minute
        page.goto(f"{server.address}/owner")
        page.wait_for_selector(".tiles")
        if page.locator("tr:has-text('sim-2')").count():
            break
        page.wait_for_timeout(1000)
    assert violations(page) == []
    words = page.locator("svg.drawn text")
    assert words.count() > 10
    assert words.evaluate_all("all => all.filter((e) => e.getBBox().x < 0).length") == 0
    assert "follows the order shown" not in page.locator("tr:has-text('sim-2')").inner_text()
    judge = page.locator("[aria-label='Models'] tr:has-text('judge:m/1')")
    assert judge.locator("td").first.inner_text() == "3"
    assert page.locator("[aria-label='People'] tr:has-text('judge:')").count() == 0
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Go on").wait_for()
    other = browser.new_context(locale="en-US").new_page()
    page.get_by_role("button", name="Invite an annotator").click()
    other.goto(page.locator("dialog input").input_value())
    other.fill("#name", "invited")
    other.fill("#password", PASSWORD)
    other.click("button")
    other.wait_for_selector("text=The room is paused")
    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Go on").click()
    page.get_by_role("button", name="Pause").wait_for()
    other.get_by_role("button", name="Look again").click()
    other.wait_for_selector(".room .tab")
    other.goto(f"{server.address}/owner")
    assert other.url == f"{server.address}/"
    page.get_by_text("Export").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="TRL").click()
    download.value.save_as(tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == ["preferences.jsonl"]
        assert archive.read("preferences.jsonl").count(b'"chosen"') >= 36
    other.context.close()


def test_the_owner_withdraws_answers_and_takes_it_back_and_releases_what_is_held(
    give: Give, open_room: Open, store: Store, server: RoomServer
) -> None:
    one, held = task("withdrawn", 4), task("in hand", 4)
    give(one, held)
    ranks = {response.id: rank for rank, response in enumerate(one.responses, 1)}
    store.submit(Ranking(one.id, "wrong", "human", ranks))
    holder = open_room("hanna")
    Accounts(store).add("orla", "owner", PASSWORD)
    Accounts(store).add("wrong", "annotator", PASSWORD)
    page = open_room("orla", PASSWORD)
    page.goto(f"{server.address}/owner")
    page.get_by_role("button", name="Change wrong").click()
    assert violations(page) == []
    page.get_by_role("button", name="Withdraw answers and hand the tasks out again").click()
    page.wait_for_selector("text=1 answers of wrong count no more")
    assert "1 answers withdrawn" in page.locator("tr:has-text('wrong')").inner_text()
    assert [r for r in store.rankings() if r.annotator == "wrong"] == []
    page.get_by_role("button", name="Count the withdrawn answers again").click()
    page.wait_for_selector("text=1 answers count again")
    assert [r.task for r in store.rankings() if r.annotator == "wrong"] == ["withdrawn"]
    for action, mark in (("Close the account", "closed"), ("Open the account again", "annotator")):
        page.get_by_role("button", name="Change wrong").click()
        page.get_by_role("button", name=action).click()
        page.wait_for_selector(f"tr:has-text('wrong'):has-text('{mark}')")
    page.wait_for_selector("tr:has-text('wrong'):not(:has-text('closed'))")
    page.get_by_role("button", name="Release, hanna").click()
    page.wait_for_selector("tr:has-text('hanna'):has-text('min')", state="detached")
    assert holder.locator(".tab").count() > 0  # her page has not noticed
    page.evaluate("document.querySelector('.room').scrollTop = 0")  # no button half under the bar
    assert violations(page) == []
    next_one = open_room("nan")
    assert next_one.locator(".tab").count() > 0
    events = [event.kind for event in store.events() if event.actor == "orla"]
    names = ["withdrew", "restored", "account changed", "account changed", "released"]
    assert [kind for kind in events if kind in names] == names
