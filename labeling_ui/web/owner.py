"""What the owner's page can ask for: how the work goes, who takes part, and stopping it.

Every function here refuses whoever is not an owner; the page itself is behind the same door.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from labeling_ui.rendering import snippet
from labeling_ui.reports.quality import Scores, report
from labeling_ui.store.accounts import Account, Accounts, Role
from labeling_ui.store.progress import Progress
from labeling_ui.store.store import Store
from labeling_ui.tasks.screening import verdicts

Reply = dict[str, Any]
FRESH_S = 20.0  # a report is made anew at most this often


@dataclass
class Owner:
    """One project, seen by its owner."""

    store: Store
    accounts: Accounts
    progress: Progress
    scores: Scores | None = None  # of a reward model, on the room's tasks
    _made: tuple[float, Reply] = field(default=(-FRESH_S, {}))

    def overview(self, account: Account, _: Mapping[str, Any]) -> Reply:
        """Progress, the report, and the accounts."""
        _only_owners(account)
        now = self.store.clock()
        if now - self._made[0] >= FRESH_S:
            self._made = (now, self._report())
        with self.store.database.read() as connection:
            screened = verdicts(connection)
        people = [
            {
                "name": a.name,
                "role": a.role,
                "daily_limit": a.daily_limit,
                "screening": screened.get(a.name),
            }
            for a in self.accounts.names()
        ]
        state = {"paused": self.progress.is_paused(), "open": self.progress.open_tasks()}
        return {"name": account.name, "people": people, **state, "report": self._made[1]}

    def _report(self) -> Reply:
        gold = self.store.gold()
        rng = np.random.default_rng(0)  # the same rankings, the same intervals
        tasks, rankings = self.store.tasks(), self.store.rankings()
        return report(tasks, rankings, gold=gold, rng=rng, scores=self.scores)

    def compare(self, account: Account, asked: Mapping[str, Any]) -> Reply:
        """One task with everybody's ranks of it, to look into a disagreement."""
        _only_owners(account)
        task = self.store.task(str(asked.get("task")))
        given = [r for r in self.store.rankings() if r.task == task.id]
        outputs = [
            {
                "text": snippet(response.text, 400),
                "model": response.model,
                "ranks": [ranking.ranks[response.id] for ranking in given],
            }
            for response in task.responses
        ]
        names = [ranking.annotator for ranking in given]
        turns = [f"{turn.role}: {snippet(turn.content, 300)}" for turn in task.history]
        shown = {"history": turns, "prompt": snippet(task.prompt, 600)}
        return {**shown, "annotators": names, "outputs": outputs}

    def pause(self, account: Account, asked: Mapping[str, Any]) -> Reply:
        """Stop handing out tasks, or go on."""
        _only_owners(account)
        self.progress.pause(account.name, paused=asked.get("paused") is True)
        return {"paused": self.progress.is_paused()}

    def invite(self, account: Account, asked: Mapping[str, Any]) -> Reply:
        """A link by which one person makes an account."""
        _only_owners(account)
        roles: dict[object, Role] = {"annotator": "annotator", "reviewer": "reviewer"}
        if asked.get("role") not in roles:
            raise ValueError("an invitation is for an annotator or a reviewer")
        role = roles[asked["role"]]
        return {"path": f"/invitation?token={self.accounts.invite(role, account.name)}"}

    def change_account(self, account: Account, asked: Mapping[str, Any]) -> Reply:
        """Close an account, or limit its answers a day."""
        _only_owners(account)
        name, limit = str(asked.get("account")), asked.get("daily_limit")
        if name == account.name:
            raise ValueError("this is your own account")
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ValueError(f"the daily limit is {limit!r}, expected a whole number from 1")
        active = asked.get("active") is not False
        self.accounts.change(name, active=active, daily_limit=limit, by=account.name)
        return {}

    def admit(self, account: Account, asked: Mapping[str, Any]) -> Reply:
        """Let somebody work on whatever the screening said."""
        _only_owners(account)
        name = str(asked.get("account"))
        if name not in {one.name for one in self.accounts.names()}:
            raise ValueError(f"there is no account '{name}'")
        self.store.admit(name, account.name)
        return {}


def _only_owners(account: Account) -> None:
    if account.role != "owner":
        raise ValueError("this is for the owner of the room")
