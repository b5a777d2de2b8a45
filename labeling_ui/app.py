"""The labeling room as a web server: Gradio pages behind our own sign-in.

Each page is one `gr.HTML` with a fixed shell, a script from `board/js`, and functions on the server
that the script calls with one object and that answer with one. No text of a task goes through
Gradio's templates: those evaluate what they are given.
"""

import asyncio
import os
import random
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

# Read when Gradio is imported: nothing of this server asks anything of another one.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request

from labeling_ui.forms import Form, forms_with
from labeling_ui.reports.quality import Scores
from labeling_ui.store.accounts import Account, Accounts
from labeling_ui.store.progress import Progress
from labeling_ui.store.store import Store
from labeling_ui.tasks.assignment import Assignment
from labeling_ui.tasks.live import Live
from labeling_ui.tasks.overlap import AdaptiveOverlap
from labeling_ui.tasks.queue import Mixing
from labeling_ui.web.middleware import AccessMiddleware, account_of
from labeling_ui.web.owner import Owner, export_route
from labeling_ui.web.room import Reply, Room, reply_to
from labeling_ui.web.sign_in import BOARD, Access, Proxy, SignedIn, SignInPages, templates

SHARED_SCRIPTS = ("translations", "dom", "saving")
ROOM_SCRIPTS = (
    "task",
    "layout",
    "rate",
    "rank",
    "compare",
    "write",
    "dialogs",
    "practice",
    "keyboard",
    "main",
)
STYLES = ("room", "steps", "reading", "task_kinds", "owner")
KEEP_ALIVE_S = 75
Action = Callable[[Account, Mapping[str, Any]], Reply]


@dataclass(frozen=True, slots=True)
class RoomOptions:
    """The choices of one room.

    Without `access` people sign in by a password, or by a name where only this machine is served.
    `scores` of a reward model let the owner see how far it agrees with each person. `tls` is the
    certificate and its key; `behind_tls` means that a proxy in front has them.
    """

    form: Form | None = None
    access: Access | None = None
    lease_s: float = 1800
    mixing: Mixing = field(default_factory=Mixing)
    tls: tuple[Path, Path] | None = None
    behind_tls: bool = False
    scores: Scores | None = None
    overlap: AdaptiveOverlap | None = None
    live: Live | None = None


def build(store: Store, options: RoomOptions) -> FastAPI:
    """Return the whole application on one store."""
    accounts, progress = Accounts(store), Progress(store)
    access = options.access or "password"
    secure = options.tls is not None or options.behind_tls
    assignment = Assignment(
        store,
        rng=random.SystemRandom(),
        lease_s=options.lease_s,
        mixing=options.mixing,
        overlap=options.overlap,
    )
    room = Room(store, forms_with(options.form), assignment, progress, options.live)
    owner = Owner(store, accounts, progress, options.scores)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.router.routes += SignInPages(accounts, access, secure=secure).routes()
    app.router.routes.append(export_route(store))
    # The last middleware is the outermost.
    app.add_middleware(AccessMiddleware)
    app.add_middleware(AuthenticationMiddleware, backend=SignedIn(accounts, access))
    app.add_middleware(GZipMiddleware, minimum_size=2000, compresslevel=5)
    accounts_of = (owner.invite, owner.change_account, owner.admit)
    people = (*accounts_of, owner.withdraw, owner.restore, owner.release)
    owners = (owner.overview, owner.compare, owner.pause, *people)
    tasks = (room.start, room.next_task, room.save_draft, room.submit, room.recent, room.reopen)
    settling = (room.disputes, room.adjudicate, room.others_ranks)
    annotators = (*tasks, room.differences, *settling, room.ask_policy)
    _mount(app, "owner", "/owner", ("owner",), owners)
    _mount(app, "room", "/", ROOM_SCRIPTS, annotators)
    return app


def serve(
    store: Store,
    options: RoomOptions,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    log: Callable[[str], None] = print,
    until: Callable[[], bool] | None = None,
) -> None:
    """Serve the room until it is interrupted, or `until` returns true; `log` gets its address.

    An owner's account is made at the first start, unless a proxy signs people in.
    """
    if options.access is None and host in ("127.0.0.1", "localhost", "::1"):
        options = replace(options, access="name")
    password = None if isinstance(options.access, Proxy) else Accounts(store).ensure_owner()
    certificate, key = options.tls or (None, None)
    port = _free_port(host, port)
    server = uvicorn.Server(
        uvicorn.Config(
            build(store, options),
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
    log(f"Labeling room: http{'s' if options.tls else ''}://{host}:{port}/  (Ctrl-C ends it)")
    if password is not None:
        log(f"Owner's account: name 'owner', password '{password}' (shown this once)")
    asyncio.run(_serve_until(server, until))


def _free_port(host: str, port: int) -> int:
    """Return the port, or any free one for 0; ValueError if another program listens there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            raise ValueError(f"{host}:{port}: cannot listen there ({error.strerror})") from None
        return int(trial.getsockname()[1])


async def _serve_until(server: uvicorn.Server, until: Callable[[], bool] | None) -> None:
    serving = asyncio.create_task(server.serve())
    while not serving.done():
        await asyncio.wait([serving], timeout=1.0)
        if until is not None and await asyncio.to_thread(until):
            server.should_exit = True
    await serving


def _mount(
    app: FastAPI, name: str, path: str, scripts: tuple[str, ...], actions: tuple[Action, ...]
) -> None:
    """Put a page at a path: a Gradio application of its own, with one component."""
    js = [BOARD / "js" / f"{script}.js" for script in (*SHARED_SCRIPTS, *scripts)]
    with gr.Blocks(title="Labeling room", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(
            value="",
            html_template=templates.get_template("room.html").render(page=name),
            js_on_load=_joined(js),
            apply_default_css=False,
            server_functions=[_server_function(action) for action in actions],
            container=False,
            padding=False,
        )
    gr.mount_gradio_app(
        app,
        page,
        path=path,
        css=_joined([BOARD / "css" / f"{style}.css" for style in STYLES]),
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace"]),
        footer_links=[],
        run_history=False,
        show_error=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
    )
    # The only private part of Gradio that is touched (seen in 6.31): its queue, through which no
    # call comes, looks for work 1000 times a second.
    page._queue.sleep_when_free = 1.0


def _server_function(action: Action) -> Callable[..., Reply]:
    """Return the action under its own name, as Gradio calls it: one object in, one out."""

    def function(message: object, request: gr.Request) -> Reply:
        # Gradio knows by the annotation what to pass, and passes Starlette's own request.
        return reply_to(action, account_of(cast("Request", request)), message)

    function.__name__ = action.__name__
    return function


def _joined(paths: list[Path]) -> str:
    """Return the files one after the other; the scripts of a page share one scope."""
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)
