"""Hostile and broken requests to the whole room get a clear answer, and nothing is lost."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from fastapi.testclient import TestClient

from labeling_ui.app import RoomOptions, build
from labeling_ui.store.accounts import Accounts
from labeling_ui.store.store import Store
from labeling_ui.web.sign_in import COOKIE
from tests.labeling_ui.examples import small_task

PASSWORD = "correct horse"
CALL = "/gradio_api/component_server/"
RANKED = {"tiers": [[0], [1, 2], [3]], "ratings": {str(i): 4 for i in range(4)}}
CLOSED = """
    /gradio_api/info /gradio_api/queue/join /gradio_api/call/x /gradio_api/upload /docs
    /gradio_api/file=/etc/passwd /gradio_api/run/predict /gradio_api/token /gradio_api/monitoring
    /static/../../etc/passwd /proxy=http://x/ /assets/../../../labels.sqlite /gradio_api/stream/x
    /gradio_api/app_id /monitoring /file=x /openapi.json
"""
HARD_TEXTS = (
    "NUL \x00 inside",
    "emoji 👩‍👩‍👧‍👦 🙂",
    "עברית وعربي ‮ turned",
    "lone \ud83d surrogate",
    "<script>alert(1)</script> ${7*7} {{7*7}} \\frac",
    "' ; DROP TABLE answers; --",
)


def whole(text: str) -> str:
    """The text without halves of characters, which no UTF-8 can carry back to the page."""
    return text.replace("\ud83d", "\ufffd")


class Page:
    """A signed-in browser, as far as the server can tell."""

    def __init__(self, client: TestClient, name: str) -> None:
        self.client = client
        assert client.post("/login", data={"name": name, "password": PASSWORD}).status_code == 303
        parts = client.get("/config").json()["components"]
        (self.component,) = [part["id"] for part in parts if part["type"] == "html"]

    def send(self, name: str, message: object, path: str = CALL) -> Any:
        page = {"component_id": self.component, "session_hash": "x"}
        body = json.dumps({"data": message, "fn_name": name, **page})
        return self.client.post(path, content=body, headers={"content-type": "application/json"})

    def call(self, name: str, message: object) -> dict[str, Any]:
        reply: dict[str, Any] = self.send(name, message).json()
        return reply


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Any]]:
    store = Store(tmp_path_factory.mktemp("room") / "labels.sqlite")
    accounts = Accounts(store)
    for name in ("ada", "zebulon", "eve"):
        accounts.add(name, "annotator", PASSWORD)
    accounts.add("olga", "owner", PASSWORD)
    store.add_tasks([small_task(f"t{i}") for i in range(60)])
    yield store, build(store, RoomOptions())
    store.close()


@pytest.fixture
def store(room: tuple[Store, Any]) -> Store:
    return room[0]


def enter(room: tuple[Store, Any], name: str) -> Page:
    client = TestClient(room[1], follow_redirects=False, raise_server_exceptions=False)
    return Page(client, name)


@pytest.fixture
def ada(room: tuple[Store, Any]) -> Page:
    return enter(room, "ada")


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_any_text_is_kept_as_it_was_typed_and_locks_nobody_out(
    ada: Page, store: Store, text: str
) -> None:
    token = ada.call("next_task", {})["task"]["token"]
    body = {**RANKED, "note": f"note: {text}", "notes": {"0": text}}
    draft = {"token": token, "revision": 1, "writer": "tab", "body": body}
    assert ada.call("save_draft", draft)["saved"]
    assert ada.call("next_task", {})["task"]["draft"]["notes"] == {"0": whole(text)}
    reply = ada.call("submit", {"token": token, "form": token, "body": body})
    assert reply["outcome"] == "stored"
    stored = store.rankings()[-1]
    assert stored.notes == f"note: {whole(text)}"
    assert list(stored.extra["output_notes"].values()) == [whole(text)]


def test_a_note_of_a_megabyte_is_refused_and_the_work_goes_on(ada: Page, store: Store) -> None:
    before = len(store.rankings())
    token = ada.call("next_task", {})["task"]["token"]
    huge = {**RANKED, "notes": {"0": "x" * 1_000_000}}
    reply = ada.call("submit", {"token": token, "form": "f", "body": huge})
    assert "notes.0" in reply["error"]
    assert "20000 characters" in reply["error"]
    draft = {"token": token, "revision": 1, "writer": "tab", "body": huge}
    assert "too long" in ada.call("save_draft", draft)["error"]
    assert ada.send("submit", {"body": "x" * 2_100_000}).status_code == 413
    assert len(store.rankings()) == before
    assert ada.call("submit", {"token": token, "form": "g", "body": RANKED})["outcome"] == "stored"


def test_anothers_task_is_out_of_reach_by_its_token(
    room: tuple[Store, Any], ada: Page, store: Store
) -> None:
    token = ada.call("next_task", {})["task"]["token"]
    eve = enter(room, "eve")
    draft = {"token": token, "revision": 9, "writer": "eve", "body": {}}
    for name, message in (
        ("submit", {"token": token, "form": "f", "body": RANKED}),
        ("save_draft", draft),
        ("reopen", {"token": token}),
    ):
        assert eve.call(name, message) == {"error": "this task is not one of yours"}
    assert [r for r in store.rankings() if r.annotator == "eve"] == []
    assert ada.call("next_task", {})["task"]["draft"] is None


@pytest.mark.parametrize("name", ["overview", "compare", "pause", "invite", "change_account"])
def test_an_annotator_cannot_call_what_is_the_owners(
    room: tuple[Store, Any], ada: Page, name: str
) -> None:
    message = {"task": "t0", "paused": True, "role": "annotator", "account": "zebulon"}
    assert ada.send(name, message).status_code >= 400
    behind = ada.send(name, message, f"/owner{CALL}")
    assert (behind.status_code, behind.json()["error"]) == (
        403,
        "this is for the owner of the room",
    )
    assert enter(room, "zebulon").call("next_task", {}).get("task") is not None


@pytest.mark.parametrize("form", ["jsonl", "trl", "audit"])
def test_only_owners_export(room: tuple[Store, Any], ada: Page, form: str) -> None:
    assert ada.client.get(f"/export/{form}").status_code == 403
    assert enter(room, "olga").client.get(f"/export/{form}").status_code == 200
    last = room[0].events()[-1]
    assert (last.actor, last.kind, last.data) == ("olga", "exported", {"form": form})


@pytest.mark.parametrize("path", CLOSED.split())
def test_nothing_else_of_gradios_interface_answers(ada: Page, path: str) -> None:
    empty = {"named_endpoints": {}, "unnamed_endpoints": {}}
    for method in ("GET", "POST"):
        reply = ada.client.request(method, path)
        assert reply.status_code in (404, 405) or reply.json() == empty, (method, path)


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        "text",
        {"token": None},
        {"token": "x" * 300, "form": "f", "body": {}},
        {"token": "a\x00b", "form": "f", "body": {}},
        {"token": "\ud800", "form": "f", "body": {}},
        {"token": {"a": 1}, "form": ["f"], "body": []},
        {"token": "t", "form": "f", "body": {"tiers": {"a": 1}}},
        {"token": "t", "form": "f", "body": {"tiers": [[10**30]]}},
        {"token": "t", "form": "f", "body": {"seconds": float("nan")}},
        {"token": "t", "form": "\ud800", "body": RANKED},
        {"token": "t", "revision": -1, "writer": "w", "body": {}},
        {"token": "t", "revision": 2**80, "writer": "w", "body": {}},
        {"token": "t", "revision": True, "writer": "w", "body": {"x": float("inf")}},
    ],
)
def test_nonsense_gets_one_line_and_the_room_goes_on(ada: Page, message: object) -> None:
    for name in ("submit", "save_draft", "reopen"):
        reply = ada.send(name, message)
        assert reply.status_code == 200
        assert reply.json()["error"]
        assert "Traceback" not in reply.text
        assert "sqlite" not in reply.text.lower()
    assert ada.call("next_task", {})["task"] is not None


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"data": {}, "fn_name": 7}']
)
def test_a_body_that_is_no_call_is_refused(ada: Page, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    assert ada.client.post(CALL, content=body, headers=headers).status_code >= 400
    assert ada.call("next_task", {})["task"] is not None


def test_a_session_cookie_that_was_changed_or_ended_opens_nothing(ada: Page) -> None:
    cookie = ada.client.cookies[COOKIE]
    for forged in (cookie[:-1], cookie + "A", cookie[::-1], "", f"{cookie}\x00", "owner", "é" * 50):
        ada.client.cookies.clear()
        headers = {"cookie": f"{COOKIE}={forged}".encode()}
        assert ada.client.post(CALL, json={}, headers=headers).status_code == 401
    assert ada.client.post(CALL, json={}).status_code == 401


def test_an_annotator_sees_no_model_name_no_gold_and_nobody_elses_work(
    tmp_path: Path, room: tuple[Store, Any], ada: Page
) -> None:
    replies = json.dumps([ada.call(name, {}) for name in ("start", "next_task", "recent")])
    assert "model-" not in replies
    assert "gold" not in replies
    assert "zebulon" not in replies
    assert tmp_path.name not in replies
    assert room[0].where not in replies


def test_gradios_private_queue_still_has_the_pause_that_the_room_sets() -> None:
    with gr.Blocks() as page:
        pass
    assert page._queue.sleep_when_free < 1  # seen in 6.31; `labeling_ui.app` sets one second
