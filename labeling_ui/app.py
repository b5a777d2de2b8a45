"""The labeling room as a web server: Gradio pages behind our own door.

Each page is one `gr.HTML` with a fixed shell, a script from `board/`, and functions on the server
that the script calls with one object and that answer with one. No text of a task goes through
Gradio's templates: those evaluate what they are given.
"""

import asyncio
import os
import random
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

# Read when Gradio is imported: nothing of this server asks anything of another one.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request
from fastapi.middleware.gzip import GZipMiddleware

from labeling_ui.forms import Form, forms_with
from labeling_ui.reports.quality import Scores
from labeling_ui.store.accounts import Account, Accounts
from labeling_ui.store.progress import Progress
from labeling_ui.store.store import Store
from labeling_ui.tasks.assignment import Assignment
from labeling_ui.tasks.live import Live
from labeling_ui.tasks.queue import Mixing
from labeling_ui.web.middleware import BOARD, Gate, add_doors, add_exports
from labeling_ui.web.owner import Owner
from labeling_ui.web.room import Reply, Room, reply_to
from labeling_ui.web.sign_in import Access, Proxy, signed_in

SCRIPTS = (
    "texts.js",
    "refusals.js",
    "elements.js",
    "task.js",
    "saving.js",
    "reading.js",
    "rate.js",
    "rank.js",
    "dragging.js",
    "compare.js",
    "write.js",
    "windows.js",
    "dialogs.js",
    "asking.js",
    "keys.js",
    "start.js",
)
STYLES = ("room.css", "steps.css", "kinds.css", "owner.css")
OWNER_SCRIPTS = (
    "texts.js",
    "refusals.js",
    "elements.js",
    "windows.js",
    "saving.js",
    "figures.js",
    "owner.js",
)
KEEP_ALIVE_S = 75
Action = Callable[[Account, Mapping[str, Any]], Reply]


def build(
    store: Store,
    *,
    form: Form | None = None,
    access: Access = "password",
    lease_s: float = 1800,
    mixing: Mixing | None = None,
    secure: bool = False,
    scores: Scores | None = None,
    live: Live | None = None,
) -> FastAPI:
    """The whole application on one store. `secure` is for service behind TLS."""
    accounts = Accounts(store)
    assignment = Assignment(store, rng=random.SystemRandom(), lease_s=lease_s, mixing=mixing)
    progress = Progress(store)
    room = Room(store, forms_with(form), assignment, progress, live)
    owner = Owner(store, accounts, progress, scores)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_doors(app, accounts, access, secure=secure)
    who = signed_in(accounts, access)
    add_exports(app, store, who)
    app.add_middleware(Gate, who=who)
    app.add_middleware(GZipMiddleware, minimum_size=2000, compresslevel=5)
    tasks = (room.start, room.next_task, room.save_draft, room.submit, room.recent, room.reopen)
    ours = (*tasks, room.disputes, room.adjudicate, room.ask_policy)
    people = (owner.invite, owner.change_account, owner.admit)
    owners = (owner.overview, owner.compare, owner.pause, *people)
    _mount(app, "/owner", "owner.html", OWNER_SCRIPTS, owners, who)
    _mount(app, "/", "room.html", SCRIPTS, ours, who)
    return app


def serve(
    store: Store,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    form: Form | None = None,
    access: Access | None = None,
    lease_s: float = 1800,
    mixing: Mixing | None = None,
    tls: tuple[Path, Path] | None = None,
    behind_tls: bool = False,
    scores: Scores | None = None,
    live: Live | None = None,
    say: Callable[[str], None] = print,
    until: Callable[[], bool] | None = None,
) -> None:
    """Serve the room until it is interrupted, or `until` says so; tell its address through `say`.

    On this machine alone (127.0.0.1) a name is enough to sign in; elsewhere passwords are needed.
    `scores` of a reward model let the owner see how far it agrees with each person. `tls` is the
    certificate and its key; `behind_tls` says that a proxy in front has them. An
    owner's account is made at the first start, unless a proxy says who is who.
    """
    is_local = host in ("127.0.0.1", "localhost", "::1")
    access = access or ("name" if is_local else "password")
    password = None if isinstance(access, Proxy) else Accounts(store).ensure_owner()
    secure = tls is not None or behind_tls
    app = build(
        store,
        form=form,
        access=access,
        lease_s=lease_s,
        mixing=mixing,
        secure=secure,
        scores=scores,
        live=live,
    )
    port = _free_port(host, port)
    server = _server(app, host, port, tls)
    say(f"Labeling room: http{'s' if tls else ''}://{host}:{port}/  (Ctrl-C ends it)")
    if password is not None:
        say(f"Owner's account: name 'owner', password '{password}' (shown this once)")
    asyncio.run(_serve_until(server, until))


def _server(app: FastAPI, host: str, port: int, tls: tuple[Path, Path] | None) -> uvicorn.Server:
    certificate, key = (None, None) if tls is None else tls
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,  # its own would close the handlers of other libraries
            log_level="warning",
            timeout_keep_alive=KEEP_ALIVE_S,
            proxy_headers=False,  # who sent a request is decided by its real sender
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
    )


def _free_port(host: str, port: int) -> int:
    """The port, or any free one for 0; ValueError if somebody else listens there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            raise ValueError(f"{host}:{port}: cannot listen there ({error.strerror})") from None
        return int(tried.getsockname()[1])


async def _serve_until(server: uvicorn.Server, until: Callable[[], bool] | None) -> None:
    serving = asyncio.create_task(server.serve())
    while not serving.done():
        await asyncio.wait([serving], timeout=1.0)
        if until is not None and await asyncio.to_thread(until):
            server.should_exit = True
    await serving


def _mount(
    app: FastAPI,
    path: str,
    shell: str,
    scripts: tuple[str, ...],
    actions: tuple[Action, ...],
    who: Callable[[Request], Account | None],
) -> None:
    """Put one page at a path: a Gradio application of its own, with one component."""
    with gr.Blocks(title="Labeling room", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(
            value="",
            html_template=(BOARD / shell).read_text(encoding="utf-8"),
            js_on_load=_joined(scripts),
            apply_default_css=False,
            server_functions=[_server_function(action, who) for action in actions],
            container=False,
            padding=False,
        )
    gr.mount_gradio_app(
        app,
        page,
        path=path,
        css=_joined(STYLES),
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace"]),
        footer_links=[],
        run_history=False,
        show_error=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
    )
    page._queue.sleep_when_free = 1.0  # it looks for work 1000 times a second; none comes that way


def _server_function(
    action: Action, who: Callable[[Request], Account | None]
) -> Callable[..., Reply]:
    """The action under its own name, as Gradio calls it: one object from the page, one back."""

    def function(asked: object, request: gr.Request) -> Reply:
        # Gradio knows by the annotation what to pass, and passes Starlette's own request.
        return reply_to(action, who(cast("Request", request)), asked)

    function.__name__ = action.__name__
    return function


def _joined(names: tuple[str, ...]) -> str:
    """Files of the board one after the other; the scripts share one scope."""
    return "\n".join((BOARD / name).read_text(encoding="utf-8") for name in names)
