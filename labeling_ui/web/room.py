"""The actions of the annotators' page, in plain Python.

Each takes an account and a message of the page and returns a reply for it, both dicts. Outputs
are numbers in the order shown: neither ids nor names of models, nor gold ranks, leave the server.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from labeling_ui.differences import marked_html, marked_plain
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
from labeling_ui.tasks.adjudication import disputes, given_ranks, show_ranks, take_dispute
from labeling_ui.tasks.answers import (
    Answers,
    Writing,
    parse,
    ranking_from,
    rating_from,
    writing_from,
)
from labeling_ui.tasks.assignment import Assignment, Lease
from labeling_ui.tasks.live import Live, Ranked, ranked
from labeling_ui.tasks.practice import feedback
from reward_models.conversations import Turn
from reward_models.records import Ranking, RankingTask

DRAFT_CHARACTERS = 400_000
MARKS = (marked_html, marked_plain)
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
        after = None if self.live is None else ranked(self.store, lease, account.name)
        more: Reply = {} if after is None else {"conversation": conversation_view(after)}
        if lease.kind == "ranking" and outcome != "again":
            more["feedback"] = feedback(self.store, Ranking.from_json(record))
        return {"outcome": outcome, **more, **self.next_task(account, {})}

    def differences(self, account: Account, message: Message) -> Reply:
        """Return two outputs of a task, by their numbers, with the words that differ marked."""
        lease = self.assignment.look_up(account.name, _text(message, "token"))
        outputs = outputs_in_order(lease, task_from(kind_of(lease.kind), lease.record))
        match message.get("outputs"):
            case [int(a), int(b)] if min(a, b) >= 0 and max(a, b) < len(outputs):
                formatted, plain = (mark(outputs[a], outputs[b]) for mark in MARKS)
            case _:
                raise ValueError("'outputs' are not the numbers of two outputs")
        sides = zip(formatted.texts, plain.texts, strict=True)
        return {
            "outputs": [{"html": html, "plain": text} for html, text in sides],
            "changes": {"html": formatted.num_changes, "plain": plain.num_changes},
            "same": outputs[a] == outputs[b],
        }

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
        """Return one of these; the reviewer's ranking will count instead of all others."""
        _only_reviewers(account)
        lease = take_dispute(self.assignment, _text(message, "task"), account.name)
        return self._reply(account, self._view(lease))

    def others_ranks(self, account: Account, message: Message) -> Reply:
        """Return the ranks that others gave, to a reviewer who has ranked all outputs."""
        _only_reviewers(account)
        lease = self.assignment.look_up(account.name, _text(message, "token"))
        answers = parse(Answers, {"tiers": message.get("tiers")})
        return {"given": show_ranks(self.store, lease, account.name, answers.tiers)}

    def ask_policy(self, account: Account, message: Message) -> Reply:
        """Return fresh outputs of the policy on this person's own prompt, to be ranked next.

        The prompt is the next turn of a conversation where a ranked task is named, by its token.
        """
        prompt, after, output = message.get("prompt"), None, None
        if self.live is None or not isinstance(prompt, str):
            raise ValueError("this room has no policy to ask")
        if "token" in message:
            earlier = self.assignment.look_up(account.name, _text(message, "token"))
            after, output = ranked(self.store, earlier, account.name), _integer(message, "output")
            if after is None:
                raise ValueError("a conversation goes on after an output that was ranked best")
        lease = self.live.ask(self.assignment, prompt, account.name, after, output)
        return self._reply(account, self._view(lease))

    def _reply(self, account: Account, view: Reply | None) -> Reply:
        progress = self.progress.of(account.name)
        return {"name": account.name, "role": account.role, "progress": progress, "task": view}

    def _view(self, lease: Lease) -> Reply:
        kind = kind_of(lease.kind)
        view = task_view(lease, task_from(kind, lease.record))
        if kind == "adjudication" and lease.state == "done":
            view["given"] = given_ranks(self.store, lease)
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
    more: Reply = {}
    if isinstance(task, WritingTask):
        more = {"shape": task.shape, "use_case": _optional(task.use_case)}
    return {
        "token": lease.token,
        "kind": lease.kind,
        "amends": lease.state == "done",
        "history": [{"role": turn.role, **_formatted(turn.content)} for turn in task.history],
        "prompt": _optional(task.prompt),
        "context": _optional(task.context),
        "outputs": [
            {**_formatted(text), "snippet": snippet(text)} for text in outputs_in_order(lease, task)
        ],
        "draft": lease.draft,
        "revision": lease.revision,
        **more,
    }


def outputs_in_order(lease: Lease, task: RoomTask) -> list[str]:
    """Return the texts that are judged, in the order in which this person sees them."""
    match task:
        case RankingTask():
            by_id = {response.id: response.text for response in task.responses}
            return [by_id[name] for name in lease.shown_order]
        case TextTask():
            return [task.text]
        case WritingTask():
            return []


def conversation_view(after: Ranked) -> Reply:
    """Return a conversation up to where it can go on, with the outputs ranked best."""
    turns = [*after.task.history, Turn("user", after.task.prompt)]
    return {
        "token": after.lease.token,
        "turns": [{"role": turn.role, **_formatted(turn.content)} for turn in turns],
        "best": [{"output": i, **_formatted(after.chosen(i).text)} for i in after.best],
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
