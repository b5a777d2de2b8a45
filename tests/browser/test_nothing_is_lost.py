"""Reloads, crashes, two tabs, two people, an expired lease, a cable pulled: the work stays."""

from collections.abc import Callable
from typing import Any

from labeling_ui.store.database import run
from labeling_ui.store.store import Store
from tests.browser.examples import task
from tests.browser.room_server import RoomServer
from tests.browser.test_ranking import (
    Keyboard,
    as_shown,
    rank_all,
    rate_all,
    the_ranking,
    wait_stored,
)

Give = Callable[..., None]
Open = Callable[..., Any]


def wait_saved(page: Any) -> None:
    page.wait_for_function("document.querySelector('.room .saved').textContent.startsWith('Saved')")


def forget_in_browser(page: Any) -> None:
    """Leave only what the server has."""
    drafts = "Object.keys(localStorage).filter(k => k.startsWith('labeling/draft'))"
    page.evaluate(f"{drafts}.forEach(k => localStorage.removeItem(k))")


def test_a_reload_in_the_middle_keeps_the_draft(give: Give, open_room: Open, store: Store) -> None:
    give(task("reload", 4))
    page = open_room("rae")
    keyboard = Keyboard(page)
    rate_all(keyboard, "1234")
    keyboard.press("4", "4")
    wait_saved(page)
    forget_in_browser(page)
    page.reload()
    page.wait_for_selector(".row[data-tier='3'] .chip[data-output='1']")
    keyboard.press("c", "1", "2", "Control+Enter")
    wait_stored(page)
    ranking = the_ranking(store, "reload", "rae")
    assert as_shown(ranking) == [3, 3, 1, 2]
    assert sorted(ranking.ratings.values()) == [1, 2, 3, 4]


def test_a_server_killed_between_draft_and_submit_loses_nothing(
    give: Give, open_room: Open, store: Store, server: RoomServer
) -> None:
    give(task("crash", 4))
    page = open_room("cal")
    keyboard = Keyboard(page)
    rate_all(keyboard, "7654")
    keyboard.press("1", "2")
    wait_saved(page)
    server.kill()
    keyboard.press("2", "1", "Control+Enter")
    page.wait_for_selector(".notice:not([hidden])")
    assert "connection" in page.locator(".notice").inner_text().lower()
    server.start()
    wait_stored(page)
    assert as_shown(the_ranking(store, "crash", "cal")) == [1, 2, 2, 1]


def test_a_minute_without_a_connection_loses_nothing(
    give: Give, open_room: Open, store: Store
) -> None:
    give(task("offline", 4), task("offline-next", 4))
    page = open_room("olu")
    page.clock.install()
    page.reload()
    page.wait_for_selector(".room .tab")
    keyboard = Keyboard(page)
    page.context.set_offline(True)
    rate_all(keyboard, "4321")
    page.clock.run_for(20_000)
    keyboard.press("1", "1", "2", "3", "Control+Enter")
    page.clock.run_for(40_000)
    page.wait_for_selector(".notice:not([hidden])")
    assert not [r for r in store.rankings() if r.annotator == "olu"]
    page.context.set_offline(False)
    page.clock.run_for(10_000)
    wait_stored(page)
    assert as_shown(the_ranking(store, "offline", "olu")) == [1, 1, 2, 3]


def test_a_submit_that_was_never_answered_is_sent_again_after_a_reload(
    give: Give, open_room: Open, store: Store
) -> None:
    give(task("unanswered", 4), task("unanswered-next", 4))
    page = open_room("una")
    keyboard = Keyboard(page)
    rate_all(keyboard, "4444")
    keyboard.press("1", "2", "3", "4")
    wait_saved(page)
    page.route("**/component_server/**", lambda route: route.fetch() and route.abort())
    keyboard.press("Control+Enter")
    page.wait_for_selector(".notice:not([hidden])")
    page.unroute_all(behavior="ignoreErrors")
    page.reload()
    wait_stored(page)
    assert len(store.history("unanswered", "una")) == 1


def test_two_tabs_of_one_person_do_not_overwrite_each_other(
    give: Give, open_room: Open, store: Store
) -> None:
    give(task("tabs", 4))
    first = open_room("tia")
    second = first.context.new_page()
    second.goto(first.url)
    second.wait_for_selector(".room .tab")
    Keyboard(first).press("7", "Enter", "6")
    wait_saved(first)
    Keyboard(second).press("1")
    second.wait_for_selector(".notice:not([hidden]) .button")
    second.locator(".notice .button").click()
    second.wait_for_function("document.querySelector('.tab[data-tab=\"0\"]').textContent === 'A7'")
    rank_all(second, "333", "1234")
    ranking = the_ranking(store, "tabs", "tia")
    assert as_shown(ranking, ranking.ratings) == [7, 3, 3, 3]


def test_two_people_at_once_get_two_tasks(give: Give, open_room: Open, store: Store) -> None:
    give(task("two-a", 4), task("two-b", 4))
    pages = {name: open_room(name) for name in ("ann", "ben")}
    for page in pages.values():
        rank_all(page, "4444", "1234")
    done = {r.annotator: r.task for r in store.rankings() if r.annotator in pages}
    assert sorted(done.values()) == ["two-a", "two-b"]


def test_work_on_an_expired_lease_is_kept_beside_the_count(
    give: Give, open_room: Open, store: Store
) -> None:
    give(task("lease", 4), task("lease-next", 4))
    slow = open_room("sly")
    rate_all(Keyboard(slow), "4444")
    wait_saved(slow)
    with store.database.write() as connection:
        run(connection, "UPDATE leases SET expires = 0 WHERE annotator = 'sly'")
    quick = open_room("qin")
    rank_all(quick, "4444", "4321")
    Keyboard(slow).press(*"1234", "Control+Enter")
    wait_stored(slow)
    assert "Others had finished" in slow.locator(".toast").inner_text()
    assert [r.annotator for r in store.rankings() if r.task == "lease"] == ["qin"]
    assert len(store.history("lease", "sly")) == 1
