"""What the page can ask for, in plain Python: each function takes an account and a dict of the
page's making, and returns a dict for the page. Nothing in it tells a model's name or gold ranks.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from labeling_ui.forms import Form, TaskKind
from labeling_ui.rendering import snippet
from labeling_ui.store.accounts import Account
from labeling_ui.store.progress import Progress
from labeling_ui.store.records import TextTask, WritingTask, kind_of, latest_answer, task_from
from labeling_ui.store.store import Store
from labeling_ui.tasks.adjudication import disputes, settled_by, take_dispute
from labeling_ui.tasks.answers import parse_answers, ranking_from, rating_from
from labeling_ui.tasks.assignment import Assignment, Lease
from labeling_ui.tasks.live import Live
from labeling_ui.tasks.writing import parse_writing, writing_record
from labeling_ui.views import as_body, shown_forms, shown_ranks, shown_task
from reward_models.records import RankingTask

DRAFT_CHARACTERS = 400_000
Reply = dict[str, Any]


@dataclass(frozen=True)
class Room:
    """One project: its store, its questions for each kind of task, and who gets what."""

    store: Store
    forms: Mapping[TaskKind, Form]
    assignment: Assignment
    progress: Progress
    live: Live | None = None

    def start(self, account: Account, _: Mapping[str, Any]) -> Reply:
        """What the page needs once: the questions, and a first task."""
        is_live = self.live is not None
        return {**shown_forms(self.forms), "live": is_live, **self.next_task(account, {})}

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
        """Take in an answer or a skip for good, and give the next task."""
        token, form_id = _text(asked, "token"), _text(asked, "form")
        lease = self.assignment.look_up(account.name, token)
        record = self._record(lease, _mapping(asked, "body"), account.name)
        outcome = self.assignment.submit(account.name, token, form_id, record)
        return {"outcome": outcome, **self.next_task(account, {})}

    def recent(self, account: Account, _: Mapping[str, Any]) -> Reply:
        """This person's latest answers, newest first."""
        rows = self.progress.recent(account.name)
        return {"answers": [{**row, "prompt": snippet(row["prompt"])} for row in rows]}

    def reopen(self, account: Account, asked: Mapping[str, Any]) -> Reply:
        """An earlier task of this person, as it was answered, to be amended."""
        lease = self.assignment.reopen(account.name, _text(asked, "token"))
        answer = latest_answer(self.store, lease.task, account.name)
        shown = self._shown(lease)
        if shown["draft"] is None and answer is not None:
            shown["draft"] = as_body(lease.kind, answer, lease.shown)
        return self._as_next(account, shown)

    def disputes(self, account: Account, _: Mapping[str, Any]) -> Reply:
        """Tasks that annotators disagree on, for a reviewer to settle."""
        _only_reviewers(account)
        rows = disputes(self.store)
        return {"disputes": [{**row, "prompt": snippet(row["prompt"])} for row in rows]}

    def adjudicate(self, account: Account, asked: Mapping[str, Any]) -> Reply:
        """One of these, with everybody's ranks; the reviewer's ranking will count instead."""
        _only_reviewers(account)
        lease = take_dispute(self.assignment, _text(asked, "task"), account.name)
        return self._as_next(account, self._shown(lease))

    def ask_policy(self, account: Account, asked: Mapping[str, Any]) -> Reply:
        """Fresh outputs of the policy on this person's own prompt, to be ranked next."""
        prompt = asked.get("prompt")
        if self.live is None or not isinstance(prompt, str):
            raise ValueError("this room has no policy to ask")
        return self._as_next(
            account, self._shown(self.live.ask(self.assignment, prompt, account.name))
        )

    def _as_next(self, account: Account, shown: Reply) -> Reply:
        person = self.progress.of(account.name)
        head = {"name": account.name, "role": account.role, "progress": person.to_json()}
        return {**head, "task": shown}

    def _shown(self, lease: Lease) -> Reply:
        kind = kind_of(lease.kind)
        shown = shown_task(lease, task_from(kind, lease.record))
        if kind == "adjudication":
            given = settled_by(self.store, lease.record)
            shown["given"] = shown_ranks(given, lease.shown)
        return shown

    def _record(self, lease: Lease, body: Mapping[str, Any], annotator: str) -> Reply:
        """What is stored of what the page sent; ValueError if something is missing."""
        kind = kind_of(lease.kind)
        form = self.forms[kind]
        match task_from(kind, lease.record):
            case RankingTask() as task:
                answers = parse_answers(body)
                return ranking_from(form, answers, task, lease.shown, annotator).to_json()
            case TextTask() as task:
                return rating_from(form, parse_answers(body), task, annotator)
            case WritingTask() as task:
                return writing_record(kind, task, parse_writing(body), annotator)


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


def _only_reviewers(account: Account) -> None:
    if account.role not in ("reviewer", "owner"):
        raise ValueError("this is for reviewers")


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
