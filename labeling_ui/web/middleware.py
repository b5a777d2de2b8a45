"""The door of the room: signing in and out, and what stands around every reply.

`Gate` is plain ASGI around the whole app. It lets through only what the pages use, sends visitors
who are not signed in to the log-in, refuses requests that another site made, and adds the headers
that keep a page from running or loading anything foreign.
"""

import io
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labeling_ui.formats.files import Format, write_export
from labeling_ui.store.accounts import SESSION_S, Account, Accounts
from labeling_ui.store.passwords import TooManyTriesError
from labeling_ui.store.store import Store
from labeling_ui.web.sign_in import COOKIE, Access, Proxy, signed_in
from labeling_ui.web.translations import choose_language, door_page

BOARD = Path(__file__).parents[1] / "board"
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-eval'",  # Gradio evaluates the page's own script
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
OPEN = ("/login", "/invitation", "/alive", "/style.css")
PAGES = ("/", "/owner")
# What the pages fetch once someone is signed in, and nothing else of Gradio's interface.
USED = (
    "/logout",
    "/config",
    "/theme.css",
    "/gradio_api/component_server",
    "/gradio_api/startup-events",
)
STATIC = ("/assets/", "/static/", "/svelte/")
USED_BELOW = (*STATIC, "/gradio_api/heartbeat/", "/export/")
BODY_BYTES = 2_000_000


class Gate:
    """ASGI middleware; see the module."""

    def __init__(self, app: ASGIApp, who: Callable[[Request], Account | None]) -> None:
        """`who` tells whose request it is."""
        self.app = app
        self.who = who

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        choose_language(Headers(scope=scope).get("accept-language", ""))
        refusal = self._refusal(Request(scope))
        await (refusal or self.app)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        path = request.url.path.rstrip("/") or "/"
        headers = request.headers
        if request.method not in ("GET", "HEAD") and _is_foreign(headers, request.url.netloc):
            return JSONResponse({"error": "this request came from another site"}, 403)
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers or not length.isdecimal():
            return JSONResponse({"error": "the length of this is not told"}, 411)
        if int(length) > BODY_BYTES:
            return JSONResponse({"error": "this is too long"}, 413)
        if path in OPEN:
            return None
        account = self.who(request)
        is_page = path in PAGES
        if account is None and not path.startswith(STATIC):
            refused = JSONResponse({"error": "signed out"}, 401)
            return RedirectResponse("/login", 303) if is_page else refused
        if path.startswith("/owner") and (account is None or account.role != "owner"):
            refused = JSONResponse({"error": "this is for the owner of the room"}, 403)
            return RedirectResponse("/", 303) if is_page else refused
        if request.url.path == "/owner":
            return RedirectResponse("/owner/", 303)
        return None if is_page else _unused(path.removeprefix("/owner"))


def _unused(path: str) -> Response | None:
    """The answer to what no page of ours asks of Gradio, or asks in vain."""
    if path == "/gradio_api/info":  # its script asks for the interface; there is none to see
        return JSONResponse({"named_endpoints": {}, "unnamed_endpoints": {}})
    if path == "/favicon.ico":
        return Response(status_code=204)
    if path in USED or path.startswith(USED_BELOW):
        return None
    return JSONResponse({"error": "not found"}, 404)


def add_doors(app: FastAPI, accounts: Accounts, access: Access, *, secure: bool) -> None:
    """Add the pages for signing in, out and by invitation. `secure` cookies travel by TLS only.

    Where a proxy signs people in there is no other way in.
    """
    _add_open_pages(app, accounts, access)
    if isinstance(access, Proxy):
        return

    def welcome(token: str) -> Response:
        reply = RedirectResponse("/", 303)
        reply.set_cookie(
            COOKIE, token, max_age=int(SESSION_S), httponly=True, samesite="strict", secure=secure
        )
        return reply

    @app.post("/login")
    async def login(request: Request) -> Response:
        given, address = await _form(request), request.client and request.client.host
        # Hashing takes its time; meanwhile others are served.
        made = await run_in_threadpool(_enter, accounts, access, given, address)
        return welcome(made) if isinstance(made, str) else made

    @app.get("/invitation")
    def invitation_page(token: str = "") -> Response:
        return _invitation(token)

    @app.post("/invitation")
    async def invitation(request: Request) -> Response:
        made = await run_in_threadpool(_accept, accounts, await _form(request))
        return welcome(made) if isinstance(made, str) else made


def _enter(
    accounts: Accounts, access: Access, given: Mapping[str, str], address: str | None
) -> str | Response:
    """A session token, or the log-in again with what was wrong."""
    name, password = given.get("name", ""), given.get("password", "")
    by_name = access == "name" and not password
    enter = accounts.sign_in_by_name if by_name else None
    try:
        token = enter(name) if enter else accounts.sign_in(name, password, address)
    except TooManyTriesError as error:
        return _login(access, name, str(error), 429)
    except ValueError as error:
        return _login(access, name, str(error), 400)
    if token is None:
        why = "This name needs its password." if by_name else "Wrong name or password."
        return _login(access, name, why, 401)
    return token


def _accept(accounts: Accounts, given: Mapping[str, str]) -> str | Response:
    token, name = given.get("token", ""), given.get("name", "")
    try:
        return accounts.accept(token, name, given.get("password", ""))
    except ValueError as error:
        return _invitation(token, name, str(error), 400)


def _add_open_pages(app: FastAPI, accounts: Accounts, access: Access) -> None:
    """The log-in form, signing out, and what needs no sign-in."""

    @app.get("/login")
    def login_page() -> Response:
        return _login(access)

    @app.post("/logout")
    def logout(request: Request) -> Response:
        accounts.sign_out(request.cookies.get(COOKIE, ""))
        reply = RedirectResponse("/login", 303)
        reply.delete_cookie(COOKIE)
        return reply

    @app.get("/alive")
    def alive(request: Request) -> dict[str, bool]:
        return {"signed_in": signed_in(accounts, access)(request) is not None}

    @app.get("/style.css")
    def style() -> Response:
        return Response((BOARD / "door.css").read_text(encoding="utf-8"), media_type="text/css")


def add_exports(app: FastAPI, store: Store, who: Callable[[Request], Account | None]) -> None:
    """Let owners download everything, in the form the address names."""

    @app.get("/export/{form}")
    def export(form: Format, request: Request) -> Response:
        account = who(request)
        if account is None or account.role != "owner":
            return JSONResponse({"error": "this is for the owner of the room"}, 403)
        packed = io.BytesIO()
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(packed, "w") as archive:
            for path in write_export(store, Path(folder), form):
                archive.write(path, path.relative_to(folder), zipfile.ZIP_DEFLATED)
        with store.database.write() as connection:
            store.log(connection, account.name, "exported", None, {"form": form})
        name = f'attachment; filename="rankings-{form}.zip"'
        headers = {"content-disposition": name}
        return Response(packed.getvalue(), media_type="application/zip", headers=headers)


async def _form(request: Request) -> dict[str, str]:
    fields = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=10)
    return {name: values[0] for name, values in fields.items()}


def _is_foreign(headers: Headers, host: str) -> bool:
    """Whether another site made the request; a program sends neither header."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site not in ("same-origin", "none")
    return origin is not None and urlsplit(origin).netloc != headers.get("host", host)


def _login(access: Access, name: str = "", problem: str = "", status: int = 200) -> HTMLResponse:
    by_name = access == "name"
    hint = "A name is enough, unless it has a password." if by_name else ""
    if isinstance(access, Proxy):
        problem, status = "You are signed in by the address you were given, not here.", 401
    filled = [("hint", hint), ("problem", problem), ("needed", "" if by_name else "required")]
    return door_page("login.html", [*filled, ("name", name)], status)


def _invitation(token: str, name: str = "", problem: str = "", status: int = 200) -> HTMLResponse:
    filled = [("problem", problem), ("token", token), ("name", name)]
    return door_page("invitation.html", filled, status)
