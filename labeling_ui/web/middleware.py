"""Middleware around the whole app: open paths, refusals, and the headers of every reply.

`AccessMiddleware` lets through only what the pages use, sends visitors who are not signed in to
the sign-in page, refuses requests that another site made, and adds the headers that keep a page
from running or loading anything from elsewhere. Those headers forbid the scripts that Gradio writes
into its pages, which it can do without; they are taken out.
"""

import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labeling_ui.store.accounts import Account

CONTENT_SECURITY_POLICY = "; ".join(
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
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
OPEN = ("/login", "/invitation", "/alive", "/style.css")
PAGES = ("/", "/owner")
# The paths that the pages fetch once someone is signed in, and nothing else of Gradio's interface.
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
INLINE_SCRIPT = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>.*?</script>", re.DOTALL)


class AccessMiddleware:
    """ASGI middleware inside Starlette's authentication; see the module."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = _refusal(Request(scope))
        if refusal is None and scope["method"] == "GET" and _path(scope) in PAGES:
            await _without_inline_scripts(self.app, scope, receive, send_with_headers)
        else:
            await (refusal or self.app)(scope, receive, send_with_headers)


def account_of(connection: HTTPConnection) -> Account | None:
    """Return the account that is signed in, if any."""
    user = connection.scope.get("user")
    return user if isinstance(user, Account) else None


async def _without_inline_scripts(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Send a page as it comes, less the scripts that stand in it."""
    # Uncompressed, to be read here; GZipMiddleware outside compresses it.
    plain = [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]
    begin: Message = {}
    body = b""

    async def collect(message: Message) -> None:
        nonlocal begin, body
        if message["type"] == "http.response.start":
            begin = message
            return
        body += message.get("body", b"")
        if message.get("more_body", False):
            return
        page = INLINE_SCRIPT.sub(b"", body)
        MutableHeaders(scope=begin)["content-length"] = str(len(page))
        await send(begin)
        await send({"type": "http.response.body", "body": page})

    await app({**scope, "headers": plain}, receive, collect)


def _path(scope: Scope) -> str:
    return str(scope["path"]).rstrip("/") or "/"


def _refusal(request: Request) -> Response | None:
    path = _path(request.scope)
    headers = request.headers
    if request.method not in ("GET", "HEAD") and _is_cross_site(headers, request.url.netloc):
        return JSONResponse({"error": "this request came from another site"}, 403)
    length = headers.get("content-length", "0")
    if "transfer-encoding" in headers or not length.isdecimal():
        return JSONResponse({"error": "the length of this request is missing"}, 411)
    if int(length) > BODY_BYTES:
        return JSONResponse({"error": "this request is too long"}, 413)
    if path in OPEN:
        return None
    account = account_of(request)
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
    """Answer what no page of ours asks of Gradio, or asks in vain."""
    if path == "/gradio_api/info":  # its script asks for the interface; there is none to see
        return JSONResponse({"named_endpoints": {}, "unnamed_endpoints": {}})
    if path == "/favicon.ico":
        return Response(status_code=204)
    if path in USED or path.startswith(USED_BELOW):
        return None
    return JSONResponse({"error": "not found"}, 404)


def _is_cross_site(headers: Headers, host: str) -> bool:
    """Check that another site made the request; a program sends neither header."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site not in ("same-origin", "none")
    return origin is not None and urlsplit(origin).netloc != headers.get("host", host)
