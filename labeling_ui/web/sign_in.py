"""Sign-in: by a name, by a password, or by a proxy in front that vouches for people.

These pages come before any script, in German or English; the pages inside bring their own table
(`board/js/translations.js`).
"""

import sys
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Literal, cast

from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.templating import Jinja2Templates

from labeling_ui.store.accounts import SESSION_S, Account, Accounts, TooManyTriesError
from labeling_ui.store.database import DatabaseError
from labeling_ui.web.middleware import account_of

COOKIE = "labeling_session"
BOARD = Path(__file__).parents[1] / "board"
CANNOT_STORE = "The room cannot store anything now; its disk may be full. Tell its owner."

GERMAN = {
    "Sign in": "Anmelden",
    "Labeling room": "Bewertungsraum",
    "Read a prompt, judge what was written for it, put it in order.": (
        "Aufgaben lesen, Antworten beurteilen, der Reihe nach ordnen."
    ),
    "Invitation": "Einladung",
    "Welcome": "Willkommen",
    "You are invited to the labeling room. Choose a name and a password.": (
        "Sie sind eingeladen. Wählen Sie einen Namen und ein Passwort."
    ),
    "At least 8 characters.": "Mindestens 8 Zeichen.",
    "Come in": "Eintreten",
    "Password": "Passwort",
    "A name is enough, unless it has a password.": "Ein Name genügt, wenn er kein Passwort hat.",
    "This name needs its password.": "Dieser Name braucht sein Passwort.",
    "The room cannot store anything now; its disk may be full. Tell its owner.": (
        "Der Raum kann gerade nichts speichern; vielleicht ist die Platte voll. Sagen Sie es dem "
        "Inhaber."
    ),
    "Wrong name or password.": "Name oder Passwort stimmt nicht.",
    "You are signed in by the address you were given, not here.": (
        "Angemeldet werden Sie über die Adresse, die Sie bekommen haben, nicht hier."
    ),
    "too many wrong passwords; try again in a minute": (
        "zu viele falsche Passwörter; in einer Minute wieder"
    ),
    "this invitation was used already, or is too old": (
        "diese Einladung ist schon benutzt oder zu alt"
    ),
    "a name has 1 to 60 characters": "ein Name hat 1 bis 60 Zeichen",
    "a name holds no control or invisible characters": (
        "ein Name enthält keine Steuerzeichen oder unsichtbaren Zeichen"
    ),
    "a password has at least 8 characters": "ein Passwort hat mindestens 8 Zeichen",
}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that signs people in and names them in a header of each request.

    The header counts only where the request itself comes from one of `addresses` (hosts or networks
    such as 10.1.0.0/16, of the proxy, never of people); from anywhere else it is as if absent.
    Whom `owners` names has the owner's page. The proxy must remove the header that visitors send.
    """

    header: str = "X-Forwarded-User"
    addresses: tuple[str, ...] = ("127.0.0.1", "::1")
    owners: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for address in self.addresses:
            try:
                ip_network(address)
            except ValueError:
                raise ValueError(
                    f"proxy address is '{address}', expected an IP address or a network"
                ) from None

    def name(self, connection: HTTPConnection) -> str | None:
        """Return the name that the proxy gives, if it sent the request and gives one."""
        names = connection.headers.getlist(self.header)
        if connection.client is None or len(names) != 1 or not names[0].strip():
            return None
        try:
            sender = ip_address(connection.client.host)
        except ValueError:
            return None
        if not any(sender in ip_network(address) for address in self.addresses):
            return None
        # HTTP headers arrive as Latin-1; proxies write UTF-8.
        return names[0].encode("latin-1", "replace").decode("utf-8", "replace")


Access = Literal["name", "password"] | Proxy


@dataclass(frozen=True)
class SignedIn(AuthenticationBackend):
    """The account of a request for Starlette's AuthenticationMiddleware."""

    accounts: Accounts
    access: Access

    async def authenticate(
        self, connection: HTTPConnection
    ) -> tuple[AuthCredentials, BaseUser] | None:
        """Return the account as Starlette's user, or None."""
        account: Account | None = None
        if not isinstance(self.access, Proxy):
            account = self.accounts.of_session(connection.cookies.get(COOKIE))
        elif (name := self.access.name(connection)) is not None:
            account = self.accounts.of_proxy(name, is_owner=name in self.access.owners)
        if account is None:
            return None
        return AuthCredentials([account.role]), cast("BaseUser", account)


@dataclass(frozen=True)
class SignInPages:
    """The pages for signing in, out and by invitation. `secure` cookies travel by TLS only."""

    accounts: Accounts
    access: Access
    secure: bool

    def routes(self) -> list[Route]:
        """Return the routes; where a proxy signs people in there is no other way in."""
        routes = [
            Route("/login", self._login_page),
            Route("/logout", self._log_out, methods=["POST"]),
            Route("/alive", lambda request: JSONResponse({"signed_in": bool(account_of(request))})),
            Route("/style.css", lambda _: FileResponse(BOARD / "css" / "sign_in.css")),
        ]
        if isinstance(self.access, Proxy):
            return routes
        return [
            *routes,
            Route("/login", self._log_in, methods=["POST"]),
            Route("/invitation", self._invitation_page),
            Route("/invitation", self._accept, methods=["POST"]),
        ]

    def _login_page(
        self, request: Request, name: str = "", problem: str = "", status: int = 200
    ) -> Response:
        if isinstance(self.access, Proxy):
            problem, status = "You are signed in by the address you were given, not here.", 401
        values = {"by_name": self.access == "name", "name": name, "problem": problem}
        return templates.TemplateResponse(request, "login.html", values, status)

    def _invitation_page(
        self, request: Request, name: str = "", problem: str = "", token: str = ""
    ) -> Response:
        token = token or request.query_params.get("token", "")
        values = {"token": token, "name": name, "problem": problem}
        status = 400 if problem else 200
        return templates.TemplateResponse(request, "invitation.html", values, status)

    async def _log_in(self, request: Request) -> Response:
        fields = await _fields(request)
        name, password = fields.get("name", ""), fields.get("password", "")
        address = None if request.client is None else request.client.host
        without_password = self.access == "name" and not password
        try:
            if without_password:
                token = await run_in_threadpool(self.accounts.sign_in_by_name, name)
            else:  # hashing takes its time; meanwhile others are served
                token = await run_in_threadpool(self.accounts.sign_in, name, password, address)
        except TooManyTriesError as error:
            return self._login_page(request, name, str(error), 429)
        except ValueError as error:
            return self._login_page(request, name, str(error), 400)
        except DatabaseError as error:
            print(f"{name!r} could not sign in: {error.orig}", file=sys.stderr)
            return self._login_page(request, name, CANNOT_STORE, 503)
        if token is None:
            problem = (
                "This name needs its password." if without_password else "Wrong name or password."
            )
            return self._login_page(request, name, problem, 401)
        return self._enter(token)

    async def _accept(self, request: Request) -> Response:
        fields = await _fields(request)
        token, name = fields.get("token", ""), fields.get("name", "")
        password = fields.get("password", "")
        try:
            session = await run_in_threadpool(self.accounts.accept, token, name, password)
        except ValueError as error:
            return self._invitation_page(request, name, str(error), token)
        except DatabaseError as error:
            print(f"{name!r} could not come in: {error.orig}", file=sys.stderr)
            return self._invitation_page(request, name, CANNOT_STORE, token)
        return self._enter(session)

    def _enter(self, session: str) -> Response:
        reply = RedirectResponse("/", 303)
        reply.set_cookie(
            COOKIE,
            session,
            max_age=int(SESSION_S),
            httponly=True,
            samesite="strict",
            secure=self.secure,
        )
        return reply

    def _log_out(self, request: Request) -> Response:
        self.accounts.sign_out(request.cookies.get(COOKIE, ""))
        reply = RedirectResponse("/login", 303)
        reply.delete_cookie(COOKIE)
        return reply


async def _fields(request: Request) -> dict[str, str]:
    async with request.form(max_files=0, max_fields=10) as form:
        return {name: value for name, value in form.items() if isinstance(value, str)}


def _language(request: Request) -> dict[str, Any]:
    """Return the first language that the browser accepts if it is known, else English."""
    accepted = request.headers.get("accept-language", "").split(",")[0].split(";")[0].strip()
    if accepted.lower().split("-")[0] == "de":
        return {"language": "de", "_": lambda text: GERMAN.get(text, text)}
    return {"language": "en", "_": str}


templates = Jinja2Templates(BOARD / "html", context_processors=[_language])
