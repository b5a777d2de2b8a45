"""What the page can ask for, in plain Python: each function takes an account and a dict of the
page's making, and returns a dict for the page. Nothing in it tells a model's name or gold ranks.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from labeling_ui.accounts import Account
from labeling_ui.answers import parse_answers, ranking_from
from labeling_ui.assignment import Assignment, Lease
from labeling_ui.form import Form
from labeling_ui.progress import Progress
from labeling_ui.rendering import plain_html, safe_html, snippet
from labeling_ui.store import Store
from reward_models.records import RankingTask

DRAFT_CHARACTERS = 400_000
Reply = dict[str, Any]


@dataclass(frozen=True)
class Room:
    """One project: its store, its questions, and who gets what."""

    store: Store
    form: Form
    assignment: Assignment
    progress: Progress

    def start(self, account: Account, _: Mapping[str, Any]) -> Reply:
        """What the page needs once: the questions, and a first task."""
        form = self.form.model_dump(exclude={"guideline"})
        guideline = safe_html(self.form.guideline)
        return {"form": form, "guideline": guideline, **self.next_task(account, {})}

    def next_task(self, account: Account, _: Mapping[str, Any]) -> Reply:
        """The task this person works on next, or why there is none."""
        person = self.progress.of(account.name)
        head = {"name": account.name, "role": account.role, "progress": person.to_json()}
        if self.progress.is_paused():
            return {**head, "task": None, "why": "paused"}
        if account.daily_limit is not None and person.today >= account.daily_limit:
            return {**head, "task": None, "why": "limit"}
        lease = self.assignment.next_task(account.name)
        if lease is not None:
            return {**head, "task": self._shown(lease), "why": None}
        out = self.assignment.is_screened_out(account.name)
        return {**head, "task": None, "why": "screening" if out else "done"}

    def save_draft(self, account: Account, asked: Mapping[str, Any]) -> Reply:
        """Keep unfinished work; `saved` is false if it was changed elsewhere since."""
        body = _mapping(asked, "body")
        if len(json.dumps(body)) > DRAFT_CHARACTERS:
            raise ValueError("this draft is too long to be kept")
        revision = _whole(asked, "revision")
        token, writer = _text(asked, "token"), _text(asked, "writer")
        saved = self.assignment.save_draft(account.name, token, revision, writer, body)
        return {"saved": saved, "time": self.store.clock()}

    def submit(self, account: Account, asked: Mapping[str, Any]) -> Reply:
        """Take in a ranking or a skip for good, and give the next task."""
        token, form_id = _text(asked, "token"), _text(asked, "form")
        lease = self.assignment.look_up(account.name, token)
        task = RankingTask.from_json(lease.record)
        answers = parse_answers(_mapping(asked, "body"))
        ranking = ranking_from(self.form, answers, task, lease.shown, account.name)
        outcome = self.assignment.submit(account.name, token, form_id, ranking.to_json())
        return {"outcome": outcome, **self.next_task(account, {})}

    def recent(self, account: Account, _: Mapping[str, Any]) -> Reply:
        """This person's latest answers, newest first."""
        rows = self.progress.recent(account.name)
        return {"answers": [{**row, "prompt": snippet(row["prompt"])} for row in rows]}

    def reopen(self, account: Account, asked: Mapping[str, Any]) -> Reply:
        """An earlier task of this person, as it was answered, to be amended."""
        lease = self.assignment.reopen(account.name, _text(asked, "token"))
        versions = self.store.history(lease.task, account.name)
        shown = self._shown(lease)
        if shown["draft"] is None and versions:
            shown["draft"] = as_body(versions[-1].to_json(), lease.shown)
        person = self.progress.of(account.name)
        return {"name": account.name, "progress": person.to_json(), "task": shown}

    def _shown(self, lease: Lease) -> Reply:
        """A task as the page sees it: outputs are numbers in the order shown, and nothing more."""
        task = RankingTask.from_json(lease.record)
        by_id = {response.id: response.text for response in task.responses}
        return {
            "token": lease.token,
            "kind": lease.kind,
            "amends": lease.state == "done",
            "prompt": _both(task.prompt),
            "context": None if task.context is None else _both(task.context),
            "outputs": [{**_both(by_id[i]), "snippet": snippet(by_id[i])} for i in lease.shown],
            "draft": lease.draft,
            "revision": lease.revision,
        }


def as_body(record: Mapping[str, Any], shown: tuple[str, ...]) -> Reply:
    """A stored ranking as the page's own form, so that it can be amended."""
    place = {name: str(i) for i, name in enumerate(shown)}
    num_tiers = max(record["ranks"].values(), default=0)
    tiers: list[list[int]] = [[] for _ in range(num_tiers)]
    for name, rank in record["ranks"].items():
        tiers[rank - 1].append(shown.index(name))
    flags: dict[str, dict[str, bool]] = {}
    for key, value in (("flags", True), ("flags_no", False)):
        for name, chosen in record.get(key, {}).items():
            flags.setdefault(place[name], {}).update(dict.fromkeys(chosen, value))

    def by_place(key: str) -> dict[str, Any]:
        return {place[name]: value for name, value in record.get(key, {}).items()}

    return {
        "tiers": tiers,
        "flags": flags,
        "ratings": by_place("ratings"),
        "scales": by_place("scales"),
        "notes": by_place("output_notes"),
        "prompt_flags": record.get("prompt_flags", {}),
        "prompt_scales": record.get("prompt_scales", {}),
        "note": record.get("notes", ""),
        "seeded": record.get("seeded", False),
    }


def reply_to(
    action: Callable[[Account, Mapping[str, Any]], Reply], account: Account | None, asked: object
) -> Reply:
    """Run an action for the page: what is wrong with the request comes back as `error`."""
    if account is None:
        return {"error": "signed out"}
    if not isinstance(asked, dict):
        return {"error": "expected one object"}
    try:
        return _sendable({"ok": True, **action(account, _sendable(asked))})
    except ValueError as error:
        return _sendable({"error": " ".join(str(error).split())})


def _sendable(message: Reply) -> Reply:
    """The message with halves of characters, which a script's text can hold and UTF-8 cannot, as
    U+FFFD. Kept as they are they would make every later reply about this task fail.
    """
    try:
        json.dumps(message, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        whole: Reply = json.loads(json.dumps(message), object_hook=_whole_texts)
        return whole
    return message


def _whole_texts(row: Mapping[str, Any]) -> Reply:
    def whole(value: Any) -> Any:
        if isinstance(value, str):
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return [whole(one) for one in value] if isinstance(value, list) else value

    return {whole(name): whole(value) for name, value in row.items()}


def _both(text: str) -> Reply:
    return {"html": safe_html(text), "plain": plain_html(text)}


def _text(asked: Mapping[str, Any], name: str) -> str:
    value = asked.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 200 or "\x00" in value:
        raise ValueError(f"'{name}' is not a short text")
    return value


def _whole(asked: Mapping[str, Any], name: str) -> int:
    value = asked.get(name)
    if not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError(f"'{name}' is not a whole number")
    return value


def _mapping(asked: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = asked.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"'{name}' is not an object")
    return value
