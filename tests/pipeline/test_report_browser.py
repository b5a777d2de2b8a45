"""The page in Chromium: nothing leaves the screen or the page, filters work without a server."""

from importlib.resources import files
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from pipeline.report.build import write_report

OVERFLOWING = """() => [...document.querySelectorAll('body *')].filter(e => {
    const box = e.getBoundingClientRect();
    return box.width > 0 && box.right > innerWidth + 1 && !e.closest('.scroll, nav');
}).map(e => e.outerHTML.slice(0, 80))"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_leaves_the_screen_or_the_page(
    run: Path, browser: Browser, width: int, scheme: str
):
    path = write_report(run, run / "report.html")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    page, requests, errors = context.new_page(), list[str](), list[str]()
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    assert page.evaluate(OVERFLOWING) == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert errors == []
    context.close()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(run: Path, browser: Browser, scheme: str):
    context = browser.new_context(color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(write_report(run, run / "report.html").as_uri())
    source = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    page.evaluate(source)
    results = page.evaluate("axe.run(document)")["violations"]
    assert [v["id"] for v in results if v["impact"] in ("serious", "critical")] == []
    context.close()


@pytest.mark.browser
def test_filters_by_mark_and_by_words_need_no_server(run: Path, browser: Browser):
    page = browser.new_page()
    page.goto(write_report(run, run / "report.html").as_uri())
    cards, everything = page.locator("#cards .card:visible"), page.locator("#cards .card").count()
    assert page.locator("#mark option").all_inner_texts() == ["anything", "toxic"]
    page.fill("#words", "ANSWER 1")
    assert cards.count() == 2
    assert page.locator("#left").inner_text() == f"2 of {everything} prompts"
    page.fill("#words", "")
    page.select_option("#mark", "toxic")
    assert cards.count() == everything  # the base is toxic everywhere
    page.close()


@pytest.mark.browser
def test_the_filter_shows_one_kind_and_all_again(run: Path, browser: Browser):
    page = browser.new_page()
    page.goto(write_report(run, run / "report.html").as_uri())
    cards = page.locator("#cards .card:visible")
    everything = cards.count()
    page.select_option("#kind", "test/chat")
    assert 0 < cards.count() < everything
    page.select_option("#kind", "")
    assert cards.count() == everything
    page.close()
