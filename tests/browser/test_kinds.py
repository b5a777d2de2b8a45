"""The room's other tasks in the browser: written, rated, judged and settled; usable by everyone."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from labeling_ui.formats.jsonl import comparisons, conversations, demonstrations, prompts, ratings
from labeling_ui.forms import TaskKind
from labeling_ui.store.accounts import Accounts
from labeling_ui.store.records import RoomTask, TextTask, WritingTask
from labeling_ui.store.store import Store
from labeling_ui.web.sign_in import BOARD
from reward_models.conversations import Turn
from reward_models.records import Ranking, RankingTask, Response
from tests.browser.conftest import next_number
from tests.browser.examples import PASSAGE, TEXTS, task
from tests.browser.room_server import RoomServer
from tests.browser.test_nothing_is_lost import forget_in_browser, wait_saved
from tests.browser.test_ranking import Keyboard, wait_stored
from tests.browser.wcag import violations

Open = Callable[..., Any]
Ask = Callable[[TaskKind, RoomTask], None]


@pytest.fixture
def ask(store: Store) -> Ask:
    """Put a task before all others."""

    def put(kind: TaskKind, one: RoomTask) -> None:
        store.add_tasks([one], kind, priority=next_number())

    return put


def check(page: Any) -> None:
    """No violation of WCAG 2.2 AA, in light and dark; colours are not read on their way."""
    page.emulate_media(reduced_motion="reduce")
    for theme in ("light", "dark"):
        page.evaluate("theme => { document.querySelector('.room').dataset.theme = theme }", theme)
        assert violations(page) == []


TURNS = (
    Turn("system", "Be *brief*."),
    Turn("user", "Where is it?"),
    Turn("assistant", "On the **north cape**."),
)
HISTORY = [
    ("System", "Be brief."),
    ("User", "Where is it?"),
    ("Assistant", "On the north cape."),
    ("User", "Who built it?"),
]


@pytest.mark.parametrize("kind", ["ranking", "comparison", "demonstration", "rating"])
def test_a_conversation_is_shown_turn_by_turn(kind: TaskKind, ask: Ask, open_room: Open) -> None:
    outputs = task("turns", 2).responses
    name = f"turns of {kind}"
    tasks: dict[str, RoomTask] = {
        "demonstration": WritingTask(name, "Who built it?", history=TURNS),
        "rating": TextTask(name, "Mara.", "Who built it?", history=TURNS),
    }
    ask(kind, tasks.get(kind, RankingTask(name, "Who built it?", outputs, history=TURNS)))
    page = open_room(f"reader of {kind}")
    turns = page.query_selector_all(".prompt .turn")
    history = [tuple(turn.inner_text().split("\n")) for turn in turns]
    assert [tuple(filter(None, one)) for one in history] == HISTORY
    check(page)


def test_a_demonstration_survives_a_reload_and_feeds_stage_one(
    ask: Ask, open_room: Open, store: Store
) -> None:
    ask("demonstration", WritingTask("demo", "Who built it?", context=PASSAGE))
    page = open_room("dee")
    page.fill("[data-field=response]", "Mara Tolk\nbuilt **it** 🙂 ${5}")
    check(page)
    wait_saved(page)
    forget_in_browser(page)
    page.reload()
    page.wait_for_selector("[data-field=response]")
    assert page.input_value("[data-field=response]").startswith("Mara Tolk\nbuilt")
    page.focus("[data-field=response]")
    page.keyboard.press("Control+Enter")
    wait_stored(page)
    (made,) = [d for d in demonstrations(store) if d.user == "dee"]
    assert (made.prompt, made.context) == ("Who built it?", PASSAGE)
    assert made.response == "Mara Tolk\nbuilt **it** 🙂 ${5}"


def test_a_few_shot_prompt_is_written_pair_by_pair(ask: Ask, open_room: Open, store: Store) -> None:
    ask("demonstration", WritingTask("few", shape="few-shot"))
    page = open_room("fay")
    assert page.locator("[data-part=submit]").is_disabled()
    page.fill("[data-field=instruction]", "Say the colour.")
    page.locator("[data-part=add]").click()
    for i, (query, response) in enumerate((("sky", "blue"), ("sun", "yellow"), ("sea", "green"))):
        page.fill(f"[data-field=query-{i}]", query)
        page.fill(f"[data-field=response-{i}]", response)
    check(page)
    page.get_by_role("button", name="Remove pair 2").click()
    page.locator("[data-part=submit]").click()
    wait_stored(page)
    made = [d for d in demonstrations(store) if d.user == "fay"]
    assert [d.response for d in made] == ["blue", "green"]
    assert "Input: sea\nOutput: green" in made[0].prompt


def test_a_prompt_is_written_for_a_use_case(ask: Ask, open_room: Open, store: Store) -> None:
    ask("prompt", WritingTask("use", shape="user-based", use_case="Mails about late parcels."))
    page = open_room("pia")
    assert "late parcels" in page.locator(".use-case").inner_text()
    page.fill("[data-field=prompt]", "Where is my parcel?")
    check(page)
    page.locator("[data-part=submit]").click()
    wait_stored(page)
    assert [p.prompt for p in prompts(store) if p.user == "pia"] == ["Where is my parcel?"]


def test_two_policies_are_compared_with_two_keys(ask: Ask, open_room: Open, store: Store) -> None:
    pair = (Response("a", "Mara Tolk.", "ppo", {}), Response("b", "$x^2$", "sft", {}))
    ask("comparison", RankingTask("pair", "Who?", pair))
    page = open_room("cora")
    first = page.locator(".card .text").first.inner_text()
    keyboard = Keyboard(page)
    keyboard.press("a")
    check(page)
    keyboard.press("Enter")
    wait_stored(page)
    assert keyboard.pressed == 2
    (judged,) = [r for r in comparisons(store)[1] if r.annotator == "cora"]
    assert judged.ranks == ({"a": 1, "b": 2} if first == "Mara Tolk." else {"a": 2, "b": 1})


def test_one_text_is_rated_for_toxicity_by_keys(ask: Ask, open_room: Open, store: Store) -> None:
    ask("rating", TextTask("text", "and they all cheered.", prompt="He won", model="sft"))
    page = open_room("tess")
    assert page.locator(".tab").count() == 0
    keyboard = Keyboard(page)
    keyboard.press("0", "1")
    check(page)
    keyboard.press("Enter")
    wait_stored(page)
    (row,) = [row for row in ratings(store) if row["annotator"] == "tess"]
    assert (row["toxicity"], row["relative_toxicity"], row["model"]) == (0, -1, "sft")


def test_a_reviewer_settles_a_disagreement_from_the_owners_page(
    open_room: Open, store: Store, server: RoomServer
) -> None:
    one = task("settled", 4)
    store.add_tasks([one], overlap=2)
    ids = [response.id for response in one.responses]
    for name, order in (("p", ids), ("q", ids[::-1])):
        store.submit(Ranking(one.id, name, "human", {x: n for n, x in enumerate(order, 1)}))
    Accounts(store).add("rhea", "owner", "correct horse")
    page = open_room("rhea", "correct horse")
    page.goto(f"{server.address}/owner")
    page.locator("a[href='/?settle=settled']").click()
    page.wait_for_selector("[data-part=given]:disabled")
    page.set_viewport_size({"width": 1280, "height": 720})
    cut = "all => all.filter((e) => e.scrollWidth > e.clientWidth).length"
    assert page.locator(".walk").evaluate_all(cut) == 0
    assert page.locator(".given").count() == 0  # not before one has ranked oneself
    Keyboard(page).press("1", "2", "2", "3")
    page.get_by_role("button", name="Show others' ranks").click()
    page.wait_for_selector(".given")
    assert "Others gave rank" in page.locator(".given").first.inner_text()
    page.keyboard.press("v")
    page.wait_for_selector(".two [data-part=differences]:not(:empty)")
    check(page)
    Keyboard(page).press("Control+Enter")
    wait_stored(page)
    events = [row for row in store.events() if row.task == "settled/adjudication"]
    assert [event.kind for event in events] == ["lease", "saw others' ranks", "submit"]
    page.goto(f"{server.address}/owner")
    page.get_by_role("button", name="rhea").first.click()
    assert TEXTS[0].split("**")[1] in page.locator("dialog").inner_text()
    assert page.locator("a[href='/?settle=settled']").count() == 0
    check(page)
    page.goto(f"{server.address}/?settle=settled")
    page.wait_for_selector("text=this disagreement is settled already")


def test_a_policy_answers_an_annotators_own_prompt(open_room: Open, store: Store) -> None:
    page = open_room("liv")
    page.get_by_role("button", name="Own prompt").click()
    page.fill("#labeling-own", "What is up?")
    check(page)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_selector("text=/answer [0-3] to What is up/")
    assert page.locator(".tab:not([data-tab='-1'])").count() == 4
    assert [t.prompt for t in store.tasks() if t.category == "live"] == ["What is up?"]


def test_a_conversation_goes_on_for_several_turns(open_room: Open, store: Store) -> None:
    page = open_room("lou")
    keyboard = Keyboard(page)
    page.get_by_role("button", name="Own prompt").click()
    page.fill("#labeling-own", "One?")
    for turn, digits in ((1, "1123"), (2, "4321")):
        page.get_by_role("button", name="Ask", exact=True).click()
        page.wait_for_selector("dialog", state="detached")
        assert page.locator(".prompt .turn").count() == (0 if turn == 1 else 3)
        for _ in range(4):
            keyboard.press("4", "Enter")
        keyboard.press(*digits, "Control+Enter")
        page.wait_for_selector("dialog .talk")
        if turn == 1:
            page.locator("dialog .choice:has-text('B')").click()  # of A and B, which are tied
            check(page)
            page.fill("#labeling-own", "Two?")
    page.get_by_role("button", name="End here").click()
    rows = [one for one in conversations(store) if one.user == "lou"]
    assert [(one.prompt, len(one.history)) for one in rows] == [("One?", 0), ("Two?", 2)]
    first = next(r for r in store.rankings() if r.task == rows[0].id)
    assert first.shown_order is not None
    assert rows[1].history[1].content == rows[0].response
    assert rows[0].response == f"answer {first.shown_order[1]} to One?"


def test_the_page_and_its_questions_speak_german(open_room: Open, store: Store) -> None:
    store.add_tasks([task("deutsch", 4)], priority=next_number())
    page = open_room("dora", locale="de-DE")
    words_on_page = page.locator(".room").inner_text()
    for word in ("Einzeln bewerten", "Güte insgesamt", "Verfehlt die Anweisung", "Überspringen"):
        assert word in words_on_page
    page.get_by_role("button", name="Leitfaden").click()
    assert "Was gut heißt" in page.locator("dialog").inner_text()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Eigene Aufgabe").click()
    page.evaluate("document.querySelector('#labeling-own').removeAttribute('maxlength')")
    page.fill("#labeling-own", "x" * 9_000)
    page.get_by_role("button", name="Fragen", exact=True).click()
    page.wait_for_selector("text=/die Aufgabe hat mehr als [0-9]+ Zeichen/")


def test_both_tables_of_texts_have_the_same_words_and_places() -> None:
    text = (BOARD / "js" / "translations.js").read_text(encoding="utf-8")
    english, german = (
        dict(re.findall(r'(\w+): "((?:[^"\\]|\\.)*)"', part))
        for part in text.split("  en: {")[1].split("  de: {")
    )
    assert len(english) > 150
    assert set(english) == set(german)
    for key, words in english.items():
        blanks = set(re.findall(r"[{]\d[}]", words))
        assert blanks == set(re.findall(r"[{]\d[}]", german[key])), key
