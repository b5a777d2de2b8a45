"""The people of a room from the command line: accounts, leases, answers withdrawn and restored."""

from contextlib import closing

from labeling_ui.rendering import snippet
from labeling_ui.store import withdrawal
from labeling_ui.store.accounts import Account, Accounts
from pipeline.labeling.exchange import store_at

ACTOR = "command line"  # in the log


def accounts(
    where: str, name: str | None, *, reset_password: bool, is_open: bool | None
) -> list[str]:
    """Change an account as asked, and return a line for it, or for each if none is named."""
    if name is None and (reset_password or is_open is not None):
        raise ValueError("no account is named; expected one after the store")
    with closing(store_at(where)) as store:
        people = Accounts(store)
        if name is None:
            return [_line(account) for account in people.all()] or ["no account yet"]
        account = people.get(name)
        lines = []
        if is_open is not None:
            people.change(name, active=is_open, daily_limit=account.daily_limit, by=ACTOR)
        if reset_password:
            password = people.reset_password(name, ACTOR)
            lines = [f"password '{password}' (shown this once)"]
        return [_line(people.get(name)), *lines]


def leases(where: str, release: str | None) -> list[str]:
    """Release what a person holds, if one is named; return a line for every task in hand."""
    with closing(store_at(where)) as store:
        if release is not None:
            number = withdrawal.release(store, release, ACTOR)
            return [f"{number} tasks of {release} are handed out again"]
        return [
            f"{one.annotator:<20} {one.task:<24} held {one.held_s / 60:.0f} min, idle "
            f"{one.idle_s / 60:.0f} min, {one.left_s / 60:.0f} min left  {snippet(one.prompt, 40)}"
            for one in withdrawal.held(store)
        ] or ["nobody holds a task"]


def withdraw(where: str, annotator: str) -> str:
    """Take a person's answers out of the count."""
    with closing(store_at(where)) as store:
        number = withdrawal.withdraw(store, annotator, ACTOR)
    return f"{number} answers of {annotator} count no more; their tasks are handed out again"


def restore(where: str, annotator: str) -> str:
    """Count a person's withdrawn answers again."""
    with closing(store_at(where)) as store:
        number, surplus = withdrawal.restore(store, annotator, ACTOR)
    late = f"; {surplus} of them are surplus, because others have answered meanwhile"
    return f"{number} answers of {annotator} are back{late if surplus else ''}"


def _line(account: Account) -> str:
    limit = "" if account.daily_limit is None else f", {account.daily_limit} answers a day"
    return f"{account.name:<20} {account.role}{'' if account.is_active else ', closed'}{limit}"
