"""The actions of the annotators' page, in plain Python.

Each takes an account and a message of the page and returns a reply for it, both dicts. Outputs
are numbers in the order shown: neither ids nor names of models, nor gold ranks, leave the server.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from labeling_ui.forms import Form, TaskKind
from labeling_ui.rendering import plain_html, safe_html, snippet
from labeling_ui.store.accounts import Account, verdict_of
from labeling_ui.store.progress import Progress
from labeling_ui.store.records import (
    RoomTask,
    TextTask,
    WritingTask,
    flag_answers,
    kind_of,
    task_from,
)
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
from labeling_ui.tasks.assignment import Assignment, Lease, Live
from labeling_ui.tasks.practice import feedback
from reward_models.records import Ranking, RankingTask

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
        reply = self._reply(account, None)
        if self.progress.is_paused():
            return {**reply, "why": "paused"}
        if account.daily_limit is not None and reply["progress"]["today"] >= account.daily_limit:
            return {**reply, "why": "limit"}
        lease = self.assignment.next_task(account.name)
        if lease is None:
            with self.store.database.read() as connection:
                is_out = verdict_of(connection, account.name) == "failed"
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
        reply = {"outcome": outcome, **self.next_task(account, {})}
        if lease.kind == "ranking" and outcome != "again":
            reply["feedback"] = feedback(self.store, Ranking.from_json(record))
        return reply

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
        progress = self.progress.of(account.name)
        return {"name": account.name, "role": account.role, "progress": progress, "task": view}

    def _view(self, lease: Lease) -> Reply:
        kind = kind_of(lease.kind)
        view = task_view(lease, task_from(kind, lease.record))
        if kind == "adjudication":  # the ranks that others gave, without their names
            rankings = settled_by(self.store, lease.record)
            view["given"] = [[r.ranks[name] for name in lease.shown_order] for r in rankings]
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


def forms_view(forms: Mapping[TaskKind, Form]) -> Reply:
    """Return the questions of each kind of task, and their guidelines as HTML by language."""
    return {
        "forms": {kind: form.model_dump(exclude={"guideline"}) for kind, form in forms.items()},
        "guidelines": {kind: _guideline(form) for kind, form in forms.items()},
    }


def task_view(lease: Lease, task: RoomTask) -> Reply:
    """Return a task with the draft of its lease."""
    outputs: list[str] = []
    more: Reply = {}
    match task:
        case RankingTask():
            by_id = {response.id: response.text for response in task.responses}
            outputs = [by_id[name] for name in lease.shown_order]
        case TextTask():
            outputs = [task.text]
        case WritingTask():
            more = {"shape": task.shape, "use_case": _optional(task.use_case)}
    return {
        "token": lease.token,
        "kind": lease.kind,
        "amends": lease.state == "done",
        "history": [{"role": turn.role, **_formatted(turn.content)} for turn in task.history],
        "prompt": _optional(task.prompt),
        "context": _optional(task.context),
        "outputs": [{**_formatted(text), "snippet": snippet(text)} for text in outputs],
        "draft": lease.draft,
        "revision": lease.revision,
        **more,
    }


def answer_view(kind: str, record: Mapping[str, Any], order: tuple[str, ...]) -> Reply:
    """Return a stored answer as the page's own form, so that it can be amended."""
    match kind:
        case "demonstration" | "prompt":
            names = ("prompt", "response", "instruction", "pairs", "note")
            return {name: record[name] for name in names if name in record}
        case "rating":
            yes = dict.fromkeys(record.get("flags", []), True)
            no = dict.fromkeys(record.get("flags_no", []), False)
            return {
                "ratings": {"0": record["rating"]} if "rating" in record else {},
                "flags": {"0": {**yes, **no}},
                "scales": {"0": record.get("scales", {})},
                "prompt_scales": record.get("scales", {}),
                "prompt_flags": record.get("prompt_flags", {}),
                "notes": {"0": record.get("notes", "")},
            }
        case _:
            return _ranking_view(record, order)


def _ranking_view(record: Mapping[str, Any], order: tuple[str, ...]) -> Reply:
    num_tiers = max(record["ranks"].values(), default=0)
    tiers: list[list[int]] = [[] for _ in range(num_tiers)]
    for name, rank in record["ranks"].items():
        tiers[rank - 1].append(order.index(name))
    index = {name: str(i) for i, name in enumerate(order)}

    def by_index(values: Mapping[str, Any]) -> Reply:
        return {index[name]: value for name, value in values.items()}

    return {
        "tiers": tiers,
        "flags": by_index(flag_answers(record)),
        "ratings": by_index(record.get("ratings", {})),
        "scales": by_index(record.get("scales", {})),
        "notes": by_index(record.get("output_notes", {})),
        "prompt_flags": record.get("prompt_flags", {}),
        "prompt_scales": record.get("prompt_scales", {}),
        "note": record.get("notes", ""),
        "seeded": record.get("seeded", False),
    }


def _formatted(text: str) -> Reply:
    """Return a text formatted and as it is."""
    return {"html": safe_html(text), "plain": plain_html(text)}


def _optional(text: str | None) -> Reply | None:
    return None if text is None else _formatted(text)


def _guideline(form: Form) -> Reply:
    words = form.guideline if isinstance(form.guideline, Mapping) else {"en": form.guideline}
    return {language: safe_html(text) for language, text in words.items()}
