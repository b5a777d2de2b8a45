"""The actions of the annotators' page, in plain Python.

Each takes an account and a message of the page and returns a reply for it, both dicts. No reply
holds a model's name or gold ranks.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from labeling_ui.forms import Form, TaskKind
from labeling_ui.rendering import snippet
from labeling_ui.store.accounts import Account
from labeling_ui.store.progress import Progress
from labeling_ui.store.records import TextTask, WritingTask, kind_of, task_from
from labeling_ui.store.store import Store
from labeling_ui.tasks.adjudication import disputes, settled_by, take_dispute
from labeling_ui.tasks.answers import (
    Answers,
    Writing,
    parse,
    ranking_from,
    rating_from,
    writing_from,
)
from labeling_ui.tasks.assignment import Assignment, Lease
from labeling_ui.tasks.live import Live
from labeling_ui.views import answer_view, forms_view, ranks_view, task_view
from reward_models.records import RankingTask

DRAFT_CHARACTERS = 400_000
Reply = dict[str, Any]
Message = Mapping[str, Any]


@dataclass(frozen=True)
class Room:
    """One project: its store, its questions for each kind of task, and its assignment of tasks."""

    store: Store
    forms: Mapping[TaskKind, Form]
    assignment: Assignment
    progress: Progress
    live: Live | None = None

    def start(self, account: Account, _: Message) -> Reply:
        """Return what the page needs once: the questions, and a first task."""
        is_live = self.live is not None
        return {**forms_view(self.forms), "live": is_live, **self.next_task(account, {})}

    def next_task(self, account: Account, _: Message) -> Reply:
        """Return the task this person works on next, or why there is none."""
        progress = self.progress.of(account.name)
        reply = self._reply(account, None)
        if self.progress.is_paused():
            return {**reply, "why": "paused"}
        if account.daily_limit is not None and progress.today >= account.daily_limit:
            return {**reply, "why": "limit"}
        lease = self.assignment.next_task(account.name)
        if lease is None:
            is_out = self.assignment.is_screened_out(account.name)
            return {**reply, "why": "screening" if is_out else "done"}
        return {**reply, "task": self._view(lease), "why": None}

    def save_draft(self, account: Account, message: Message) -> Reply:
        """Store unfinished work; `saved` is false if it was changed elsewhere since."""
        body = _mapping(message, "body")
        if len(json.dumps(body)) > DRAFT_CHARACTERS:
            raise ValueError("this draft is too long to be stored")
        revision = _integer(message, "revision")
        token, writer = _text(message, "token"), _text(message, "writer")
        saved = self.assignment.save_draft(account.name, token, revision, writer, body)
        return {"saved": saved, "time": self.store.clock()}

    def submit(self, account: Account, message: Message) -> Reply:
        """Store an answer or a skip for good, and return the next task."""
        token, form_id = _text(message, "token"), _text(message, "form")
        lease = self.assignment.look_up(account.name, token)
        record = self._record(lease, _mapping(message, "body"), account.name)
        outcome = self.assignment.submit(account.name, token, form_id, record)
        return {"outcome": outcome, **self.next_task(account, {})}

    def recent(self, account: Account, _: Message) -> Reply:
        """Return this person's latest answers, newest first."""
        rows = self.progress.recent(account.name)
        return {"answers": [{**row, "prompt": snippet(row["prompt"])} for row in rows]}

    def reopen(self, account: Account, message: Message) -> Reply:
        """Return an earlier task of this person, as it was answered, to be amended."""
        lease = self.assignment.reopen(account.name, _text(message, "token"))
        answer = self.store.latest_answer(lease.task, account.name)
        view = self._view(lease)
        if view["draft"] is None and answer is not None:
            view["draft"] = answer_view(lease.kind, answer, lease.shown_order)
        return self._reply(account, view)

    def disputes(self, account: Account, _: Message) -> Reply:
        """Return the tasks that annotators disagree on, for a reviewer to settle."""
        _only_reviewers(account)
        rows = disputes(self.store)
        return {"disputes": [{**row, "prompt": snippet(row["prompt"])} for row in rows]}

    def adjudicate(self, account: Account, message: Message) -> Reply:
        """Return one of these with everybody's ranks; the reviewer's ranking will count instead."""
        _only_reviewers(account)
        lease = take_dispute(self.assignment, _text(message, "task"), account.name)
        return self._reply(account, self._view(lease))

    def ask_policy(self, account: Account, message: Message) -> Reply:
        """Return fresh outputs of the policy on this person's own prompt, to be ranked next."""
        prompt = message.get("prompt")
        if self.live is None or not isinstance(prompt, str):
            raise ValueError("this room has no policy to ask")
        lease = self.live.ask(self.assignment, prompt, account.name)
        return self._reply(account, self._view(lease))

    def _reply(self, account: Account, view: Reply | None) -> Reply:
        progress = asdict(self.progress.of(account.name))
        return {"name": account.name, "role": account.role, "progress": progress, "task": view}

    def _view(self, lease: Lease) -> Reply:
        kind = kind_of(lease.kind)
        view = task_view(lease, task_from(kind, lease.record))
        if kind == "adjudication":
            rankings = settled_by(self.store, lease.record)
            view["given"] = ranks_view(rankings, lease.shown_order)
        return view

    def _record(self, lease: Lease, body: Message, annotator: str) -> Reply:
        """Return the record to be stored; ValueError if a required answer is missing."""
        kind = kind_of(lease.kind)
        form = self.forms[kind]
        match task_from(kind, lease.record):
            case RankingTask() as task:
                answers = parse(Answers, body)
                return ranking_from(form, answers, task, lease.shown_order, annotator).to_json()
            case TextTask() as task:
                return rating_from(form, parse(Answers, body), task, annotator)
            case WritingTask() as task:
                return writing_from(kind, parse(Writing, body), task, annotator)


def reply_to(
    action: Callable[[Account, Message], Reply], account: Account | None, message: object
) -> Reply:
    """Run an action for the page; a ValueError comes back as `error`."""
    if account is None:
        return {"error": "signed out"}
    if not isinstance(message, dict):
        return {"error": "expected one object"}
    try:
        return _sendable({"ok": True, **action(account, _sendable(message))})
    except ValueError as error:
        return _sendable({"error": " ".join(str(error).split())})


def _sendable(message: Reply) -> Reply:
    """Replace halves of characters, which a script's text can hold and UTF-8 cannot, by U+FFFD.

    Stored as they are they would make every later reply about this task fail.
    """
    text = json.dumps(message, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return dict(json.loads(text))
    return message


def _only_reviewers(account: Account) -> None:
    if account.role not in ("reviewer", "owner"):
        raise ValueError("this is for reviewers")


def _text(message: Message, name: str) -> str:
    value = message.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 200 or "\x00" in value:
        raise ValueError(f"'{name}' is not a short text")
    return value


def _integer(message: Message, name: str) -> int:
    value = message.get(name)
    if not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError(f"'{name}' is not a whole number")
    return value


def _mapping(message: Message, name: str) -> Message:
    value = message.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"'{name}' is not an object")
    return value
