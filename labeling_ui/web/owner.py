"""The actions of the owner's page: progress, people, pausing, export.

Every action refuses people who are not owners; the middleware guards the page itself as well.
"""

import io
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from labeling_ui.formats.files import Format, write_export
from labeling_ui.rendering import safe_html, snippet
from labeling_ui.reports.quality import Scores, report
from labeling_ui.store.accounts import Account, Accounts, Role, verdicts
from labeling_ui.store.progress import RECENT, Progress
from labeling_ui.store.store import Store
from labeling_ui.store.withdrawal import (
    answers_by_person,
    held,
    release,
    restore,
    withdraw,
)
from labeling_ui.tasks.adjudication import adjudications
from labeling_ui.web.middleware import account_of
from reward_models.conversations import Turn

Reply = dict[str, Any]
CACHE_S = 20.0  # how long a report is not computed again


@dataclass
class Owner:
    """One project, seen by its owner."""

    store: Store
    accounts: Accounts
    progress: Progress
    scores: Scores | None = None  # of a reward model, on the room's tasks
    _cache: tuple[float, Reply] = field(default=(-CACHE_S, {}))

    def overview(self, account: Account, _: Mapping[str, Any]) -> Reply:
        """Return progress, the report, and the accounts."""
        _only_owners(account)
        now_s = self.store.clock()
        if now_s - self._cache[0] >= CACHE_S:
            rng = np.random.default_rng(0)  # the same rankings, the same intervals
            tasks, rankings, gold = self.store.tasks(), self.store.rankings(), self.store.gold()
            judgements = self.store.rankings(use="judges")
            numbers = report(
                tasks,
                rankings,
                gold=gold,
                rng=rng,
                scores=self.scores,
                judgements=judgements,
                practice=self.store.practice(),
            )
            self._cache = (now_s, numbers)
        with self.store.database.read() as connection:
            screening = verdicts(connection)
        people = [
            {**asdict(one), "screening": screening.get(one.name)} for one in self.accounts.all()
        ]
        leases = [{**asdict(one), "prompt": snippet(one.prompt)} for one in held(self.store)]
        state = {
            "paused": self.progress.is_paused(),
            "open": self.progress.open_tasks(),
            "held": leases,
            "answered": answers_by_person(self.store, withdrawn=False),
            "withdrawn": answers_by_person(self.store, withdrawn=True),
        }
        numbers = {**self._cache[1], **self._disputes()}
        return {"name": account.name, "people": people, **state, "report": numbers}

    def compare(self, account: Account, message: Mapping[str, Any]) -> Reply:
        """Return one settled task with everybody's ranks of it, the decision last."""
        _only_owners(account)
        task = self.store.task(str(message.get("task")))
        decisions = [one for one in adjudications(self.store) if one.task == task.id]
        if not decisions:
            raise ValueError("others' ranks are shown once the disagreement is settled")
        rankings = [one for one in self.store.rankings() if one.task == task.id] + decisions
        turns = (*task.history, Turn("user", task.prompt))
        return {
            "turns": [{"role": turn.role, "html": safe_html(turn.content)} for turn in turns],
            "annotators": [ranking.annotator for ranking in rankings],
            "outputs": [
                {
                    "html": safe_html(response.text),
                    "model": response.model,
                    "ranks": [ranking.ranks[response.id] for ranking in rankings],
                }
                for response in task.responses
            ],
        }

    def pause(self, account: Account, message: Mapping[str, Any]) -> Reply:
        """Stop or resume handing out tasks."""
        _only_owners(account)
        self.progress.pause(account.name, paused=message.get("paused") is True)
        return {"paused": self.progress.is_paused()}

    def invite(self, account: Account, message: Mapping[str, Any]) -> Reply:
        """Return a link by which one person makes an account."""
        _only_owners(account)
        roles: dict[object, Role] = {"annotator": "annotator", "reviewer": "reviewer"}
        if message.get("role") not in roles:
            raise ValueError("an invitation is for an annotator or a reviewer")
        token = self.accounts.invite(roles[message["role"]], account.name)
        return {"path": f"/invitation?token={token}"}

    def change_account(self, account: Account, message: Mapping[str, Any]) -> Reply:
        """Close an account or open it again, and limit its answers a day."""
        _only_owners(account)
        name, limit = str(message.get("account")), message.get("daily_limit")
        if name == account.name:
            raise ValueError("this is your own account")
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ValueError(f"the daily limit is {limit!r}, expected a whole number from 1")
        active = message.get("active") is not False
        self.accounts.change(name, active=active, daily_limit=limit, by=account.name)
        return {}

    def admit(self, account: Account, message: Mapping[str, Any]) -> Reply:
        """Let somebody work on whatever the screening found."""
        _only_owners(account)
        name = self.accounts.get(str(message.get("account"))).name
        self.accounts.admit(name, account.name)
        return {}

    def withdraw(self, account: Account, message: Mapping[str, Any]) -> Reply:
        """Take somebody's answers out of the count and hand their tasks out again."""
        _only_owners(account)
        number = withdraw(self.store, str(message.get("account")), account.name)
        self._cache = (-CACHE_S, {})
        return {"number": number}

    def restore(self, account: Account, message: Mapping[str, Any]) -> Reply:
        """Count somebody's withdrawn answers again, where nobody else has answered by now."""
        _only_owners(account)
        number, surplus = restore(self.store, str(message.get("account")), account.name)
        self._cache = (-CACHE_S, {})
        return {"number": number, "surplus": surplus}

    def release(self, account: Account, message: Mapping[str, Any]) -> Reply:
        """Give the tasks back that somebody holds."""
        _only_owners(account)
        return {"number": release(self.store, str(message.get("account")), account.name)}

    def _disputes(self) -> Reply:
        """Return the disagreements that are open and those that are settled, newest first."""
        decisions = {one.task: one.annotator for one in adjudications(self.store)}
        rows = self._cache[1]["disputed"]
        prompts = {task: self.store.task(task).prompt for task in list(decisions)[::-1][:RECENT]}
        return {
            "disputed": [row for row in rows if row["task"] not in decisions],
            "settled": [
                {"task": task, "by": decisions[task], "prompt": snippet(prompt)}
                for task, prompt in prompts.items()
            ],
        }


def export_route(store: Store) -> Route:
    """Return the route by which owners download everything, in the format its path names."""

    def export(request: Request) -> Response:
        account, form = account_of(request), request.path_params["form"]
        if account is None or account.role != "owner":
            return JSONResponse({"error": "this is for the owner of the room"}, 403)
        if form not in get_args(Format):
            return JSONResponse({"error": "not found"}, 404)
        buffer = io.BytesIO()
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(buffer, "w") as archive:
            for path in write_export(store, Path(folder), form):
                archive.write(path, path.relative_to(folder), zipfile.ZIP_DEFLATED)
        with store.database.write() as connection:
            store.log(connection, account.name, "exported", None, {"form": form})
        headers = {"content-disposition": f'attachment; filename="rankings-{form}.zip"'}
        return Response(buffer.getvalue(), media_type="application/zip", headers=headers)

    return Route("/export/{form}", export)


def _only_owners(account: Account) -> None:
    if account.role != "owner":
        raise ValueError("this is for the owner of the room")
