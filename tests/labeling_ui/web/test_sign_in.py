"""Sign-in, what it lets through, and what stands around every reply."""

import contextlib
import hashlib
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from starlette.middleware.authentication import AuthenticationMiddleware

from labeling_ui.store import accounts as accounts_module
from labeling_ui.store.accounts import Accounts, TooManyTriesError, clean_name
from labeling_ui.store.database import run
from labeling_ui.store.store import Store
from labeling_ui.web.middleware import AccessMiddleware
from labeling_ui.web.sign_in import COOKIE, Access, Proxy, SignedIn, SignInPages
from tests.labeling_ui.examples import at_once

PASSWORD = "correct horse"


@pytest.fixture
def accounts(store: Store) -> Accounts:
    return Accounts(store)


def site(
    accounts: Accounts, access: Access = "password", *, secure: bool = False, sender: str = "host"
) -> TestClient:
    app = FastAPI()
    app.router.routes += SignInPages(accounts, access, secure=secure).routes()
    app.add_middleware(AccessMiddleware)
    app.add_middleware(AuthenticationMiddleware, backend=SignedIn(accounts, access))

    @app.get("/")
    def page() -> str:
        return "the room"

    @app.get("/owner/")
    def owner() -> str:
        return "the owner's page"

    @app.post("/gradio_api/component_server")
    def call() -> str:
        return "called"

    return TestClient(app, follow_redirects=False, client=(sender, 50000))


@pytest.fixture
def client(accounts: Accounts) -> TestClient:
    accounts.add("ada", "annotator", PASSWORD)
    return site(accounts)


def enter(client: TestClient, name: str, password: str) -> int:
    return client.post("/login", data={"name": name, "password": password}).status_code


def test_who_is_not_signed_in_is_sent_to_the_log_in(client: TestClient) -> None:
    assert client.get("/").headers["location"] == "/login"
    assert client.post("/gradio_api/component_server").status_code == 401


def test_name_and_password_open_the_room_and_signing_out_closes_it(client: TestClient) -> None:
    assert enter(client, "ada", PASSWORD) == 303
    cookie = client.cookies.get(COOKIE)
    assert client.get("/").json() == "the room"
    assert client.post("/logout").status_code == 303
    client.cookies.set(COOKIE, cookie or "")
    assert client.get("/").status_code == 303


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(client: TestClient) -> None:
    reply = client.post("/login", data={"name": "ada", "password": PASSWORD})
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie


def test_five_wrong_passwords_block_the_name_for_a_minute(client: TestClient) -> None:
    assert [enter(client, "ada", "wrong") for _ in range(5)] == [401] * 5
    assert enter(client, "ada", PASSWORD) == 429


def test_wrong_passwords_from_elsewhere_lock_nobody_out(accounts: Accounts) -> None:
    accounts.add("olga", "owner", PASSWORD)
    attacker, owner = site(accounts, sender="192.0.2.1"), site(accounts, sender="192.0.2.2")
    assert [enter(attacker, "olga", "wrong") for _ in range(6)] == [401] * 5 + [429]
    assert enter(owner, "olga", PASSWORD) == 303
    assert enter(attacker, "olga", PASSWORD) == 429


def test_a_full_disk_is_named_at_the_log_in(tmp_path: Path) -> None:
    store = Store(tmp_path / "labels.sqlite")
    accounts = Accounts(store)
    accounts.add("ada", "annotator", PASSWORD)
    with store.database.read() as connection:
        limit = f"PRAGMA max_page_count = {run(connection, 'PRAGMA page_count').scalar_one()}"
    event.listen(store.database.engine, "connect", lambda each, _: each.execute(limit))
    store.database.engine.dispose()
    for length in (1000, 1):  # until nothing fits
        with contextlib.suppress(DBAPIError):
            for _ in range(1000):
                with store.database.write(durable=False) as connection:
                    store.log(connection, "x", "x" * length, None, {})
    full = site(accounts).post("/login", data={"name": "ada", "password": PASSWORD})
    assert full.status_code == 503
    assert "its disk may be full" in full.text


def test_a_new_password_ends_the_sessions_of_the_old_one(accounts: Accounts) -> None:
    accounts.add("olga", "owner", PASSWORD)
    session = accounts.sign_in("olga", PASSWORD)
    password = accounts.reset_password("olga")
    assert accounts.of_session(session) is None
    assert accounts.sign_in("olga", PASSWORD) is None
    assert accounts.sign_in("olga", password) is not None
    with pytest.raises(ValueError, match="there is no account 'nobody'"):
        accounts.reset_password("nobody")


def test_the_block_ends(where: str) -> None:
    now = [1e6]
    accounts = Accounts(Store(where, clock=lambda: now[0]))
    accounts.add("ada", "annotator", PASSWORD)
    for _ in range(5):
        assert accounts.sign_in("ada", "wrong") is None
    with pytest.raises(TooManyTriesError):
        accounts.sign_in("ada", PASSWORD)
    now[0] += 61
    assert accounts.sign_in("ada", PASSWORD) is not None


def test_a_request_made_by_another_site_is_refused(client: TestClient) -> None:
    assert enter(client, "ada", PASSWORD) == 303
    path = "/gradio_api/component_server"
    assert client.post(path).status_code == 200
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"}):
        assert client.post(path, headers=headers).status_code == 403


def test_the_owners_page_is_for_owners(client: TestClient, accounts: Accounts) -> None:
    accounts.add("olga", "owner", PASSWORD)
    assert enter(client, "ada", PASSWORD) == 303
    assert client.get("/owner/").headers["location"] == "/"
    assert client.post("/owner/gradio_api/component_server").status_code == 403
    assert enter(client, "olga", PASSWORD) == 303
    assert client.get("/owner/").json() == "the owner's page"


def test_every_reply_forbids_foreign_and_inline_scripts(client: TestClient) -> None:
    policy = client.get("/login").headers["content-security-policy"]
    scripts = next(part for part in policy.split("; ") if part.startswith("script-src"))
    assert scripts == "script-src 'self' 'unsafe-eval'"
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy


def test_what_is_too_long_is_refused(client: TestClient) -> None:
    assert client.post("/login", content=b"x" * 2_000_001).status_code == 413


def test_a_name_is_shown_as_text_on_the_log_in(client: TestClient) -> None:
    reply = client.post("/login", data={"name": '"><script>x</script>', "password": "wrong"})
    assert "<script>" not in reply.text
    assert "&lt;script&gt;" in reply.text


def test_by_name_alone_one_enters_but_not_as_somebody_with_a_password(
    accounts: Accounts,
) -> None:
    accounts.add("olga", "owner", PASSWORD)
    client = site(accounts, "name")
    assert enter(client, "ben", "") == 303
    assert enter(client, "ben", "") == 303
    assert enter(client, "olga", "") == 401
    assert enter(client, "olga", PASSWORD) == 303


def test_by_name_alone_is_closed_where_passwords_are_asked_for(client: TestClient) -> None:
    assert enter(client, "ben", "") == 401


def test_an_invitation_works_once(client: TestClient, accounts: Accounts) -> None:
    given = {"token": accounts.invite("reviewer"), "name": "rob", "password": PASSWORD}
    assert client.post("/invitation", data=given).status_code == 303
    again = client.post("/invitation", data={**given, "name": "eve"})
    assert (again.status_code, "used already" in again.text) == (400, True)
    assert [(a.name, a.role) for a in accounts.all()] == [
        ("ada", "annotator"),
        ("rob", "reviewer"),
    ]


def test_the_owners_password_is_made_once_and_stored_only_as_a_hash(
    accounts: Accounts, store: Store
) -> None:
    password = accounts.ensure_owner()
    assert password is not None
    assert accounts.ensure_owner() is None
    assert accounts.sign_in("owner", password) is not None
    store.close()
    if "://" in store.where:
        pytest.skip("the file is looked into only where the store is a file")
    assert password.encode() not in Path(store.where).read_bytes()


def test_a_scrypt_hash_of_version_0_1_still_signs_in_and_is_replaced(
    accounts: Accounts, store: Store
) -> None:
    salt = bytes(range(16))
    scrypt = hashlib.scrypt(PASSWORD.encode(), salt=salt, n=2**14, r=8, p=1)
    accounts.add("old", "annotator")
    with store.database.write() as connection:
        old = f"scrypt${salt.hex()}${scrypt.hex()}"
        run(connection, "UPDATE accounts SET password = :old", old=old)
    assert accounts.sign_in("old", "wrong") is None
    assert accounts.sign_in("old", PASSWORD) is not None
    with store.database.read() as connection:
        stored = run(connection, "SELECT password FROM accounts").scalar()
    assert str(stored).startswith("$argon2id$")
    assert accounts.sign_in("old", PASSWORD) is not None
    assert accounts.sign_in("old", "wrong") is None


def test_a_cookie_of_a_room_behind_tls_never_travels_in_the_clear(accounts: Accounts) -> None:
    reply = site(accounts, "name", secure=True).post("/login", data={"name": "ada"})
    assert "secure" in reply.headers["set-cookie"].lower()


def test_many_wrong_passwords_for_any_names_block_their_address(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts_module, "FROM_AN_ADDRESS", 6)  # of 50: hashing takes its time
    accounts.add("ada", "annotator", PASSWORD)
    mallory, other = (site(accounts, sender=host) for host in ("192.0.2.7", "192.0.2.8"))
    assert {enter(mallory, f"guess-{i}", "wrong") for i in range(6)} == {401}
    assert enter(mallory, "ada", PASSWORD) == 429
    assert enter(other, "ada", PASSWORD) == 303


def test_a_body_of_untold_length_is_refused(client: TestClient) -> None:
    assert client.post("/login", content=iter([b"name=ada"])).status_code == 411


PROXY = Proxy("X-User", ("10.1.0.0/16",), owners=("olga",))


def test_whom_a_trusted_proxy_names_is_in(accounts: Accounts) -> None:
    client = site(accounts, PROXY, sender="10.1.2.3")
    assert client.get("/", headers={"X-User": "ada"}).json() == "the room"
    assert client.get("/owner/", headers={"X-User": "ada"}).headers["location"] == "/"
    assert client.get("/owner/", headers={"X-User": "olga"}).json() == "the owner's page"
    name = "Zoë 🙂".encode()
    assert client.get("/", headers={b"X-User": name}).json() == "the room"
    assert [(a.name, a.role) for a in accounts.all()] == [
        ("Zoë 🙂", "annotator"),
        ("ada", "annotator"),
        ("olga", "owner"),
    ]


@pytest.mark.parametrize("sender", ["10.2.0.1", "127.0.0.1", "::1", "testclient", "192.0.2.7"])
def test_a_header_from_anywhere_else_opens_nothing(accounts: Accounts, sender: str) -> None:
    client = site(accounts, PROXY, sender=sender)
    forged = {"X-User": "olga", "X-Forwarded-For": "10.1.2.3", "X-Real-IP": "10.1.2.3"}
    assert client.get("/", headers=forged).headers["location"] == "/login"
    assert client.post("/gradio_api/component_server", headers=forged).status_code == 401
    assert accounts.all() == []


@pytest.mark.parametrize("headers", [[], [("X-User", " ")], [("X-User", "a"), ("X-User", "b")]])
def test_a_proxy_that_names_nobody_or_two_lets_nobody_in(
    accounts: Accounts, headers: list[tuple[str, str]]
) -> None:
    client = site(accounts, PROXY, sender="10.1.2.3")
    assert client.get("/", headers=headers).headers["location"] == "/login"


def test_behind_a_proxy_there_is_no_other_way_in(accounts: Accounts) -> None:
    accounts.add("ada", "annotator", PASSWORD)
    session = accounts.sign_in("ada", PASSWORD)
    client = site(accounts, PROXY, sender="10.1.2.3")
    assert client.post("/login", data={"name": "ada", "password": PASSWORD}).status_code == 405
    assert client.get("/login").status_code == 401
    client.cookies.set(COOKIE, session or "")
    assert client.get("/").headers["location"] == "/login"
    accounts.change("ada", active=False, daily_limit=None)
    assert client.get("/", headers={"X-User": "ada"}).headers["location"] == "/login"


def test_a_proxys_address_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"proxy address is 'proxy.local', expected an IP"):
        Proxy(addresses=("proxy.local",))


def test_of_two_who_accept_one_invitation_at_once_one_is_late(
    where: str, accounts: Accounts
) -> None:
    token, taken = accounts.invite("annotator"), []

    def accept(name: str) -> None:
        with contextlib.suppress(ValueError):
            taken.append(Accounts(Store(where)).accept(token, name, PASSWORD))

    at_once(accept, ("ann", "bob", "cyd"))
    assert len(taken) == len(accounts.all()) == 1


def test_the_log_says_who_changed_whose_account(accounts: Accounts, store: Store) -> None:
    accounts.add("ada", "annotator", PASSWORD)
    accounts.change("ada", active=True, daily_limit=5, by="olga")
    accounts.invite("reviewer", by="olga")
    changes = [(e.actor, e.kind, e.data.get("account")) for e in store.events()[-2:]]
    assert changes == [("olga", "account changed", "ada"), ("olga", "invited", None)]


def test_an_account_that_was_closed_is_signed_out(accounts: Accounts) -> None:
    accounts.add("ada", "annotator", PASSWORD)
    token = accounts.sign_in("ada", PASSWORD)
    assert accounts.of_session(token) is not None
    accounts.change("ada", active=False, daily_limit=None)
    assert accounts.of_session(token) is None
    assert accounts.sign_in("ada", PASSWORD) is None


@pytest.mark.parametrize("name", ["", "  ", "x" * 61, "a\x00b", "a\u202eb", "a\nb", "\ud800"])
def test_names_that_could_deceive_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a name"):
        clean_name(name)


def test_names_of_any_language_are_welcome() -> None:
    assert clean_name(" Zoë Nuñez ") == "Zoë Nuñez"
    assert clean_name("<b>ada</b>") == "<b>ada</b>"
