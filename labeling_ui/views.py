"""Views: tasks, forms and earlier answers as the page gets them.

Outputs are numbers in the order shown: neither ids nor names of models leave the server.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from labeling_ui.forms import Form, TaskKind
from labeling_ui.rendering import plain_html, safe_html, snippet
from labeling_ui.store.records import RoomTask, TextTask, WritingTask
from labeling_ui.tasks.assignment import Lease
from reward_models.records import Ranking, RankingTask

View = dict[str, Any]


def forms_view(forms: Mapping[TaskKind, Form]) -> View:
    """Return the questions of each kind of task, and their guidelines as HTML by language."""
    return {
        "forms": {kind: form.model_dump(exclude={"guideline"}) for kind, form in forms.items()},
        "guidelines": {kind: _guideline(form) for kind, form in forms.items()},
    }


def task_view(lease: Lease, task: RoomTask) -> View:
    """Return a task with the draft of its lease."""
    outputs: list[str] = []
    more: View = {}
    match task:
        case RankingTask():
            by_id = {response.id: response.text for response in task.responses}
            outputs = [by_id[name] for name in lease.shown_order]
        case TextTask():
            outputs = [task.text]
        case WritingTask():
            more = {"shape": task.shape, "use_case": _optional_text(task.use_case)}
    return {
        "token": lease.token,
        "kind": lease.kind,
        "amends": lease.state == "done",
        "history": [{"role": turn.role, **_text(turn.content)} for turn in task.history],
        "prompt": _optional_text(task.prompt),
        "context": _optional_text(task.context),
        "outputs": [{**_text(text), "snippet": snippet(text)} for text in outputs],
        "draft": lease.draft,
        "revision": lease.revision,
        **more,
    }


def ranks_view(rankings: Iterable[Ranking], order: tuple[str, ...]) -> list[list[int]]:
    """Return each annotator's ranks in the order shown, without names, for adjudication."""
    return [[ranking.ranks[name] for name in order] for ranking in rankings]


def answer_view(kind: str, record: Mapping[str, Any], order: tuple[str, ...]) -> View:
    """Return a stored answer as the page's own form, so that it can be amended."""
    match kind:
        case "demonstration" | "prompt":
            names = ("prompt", "response", "instruction", "pairs", "note")
            return {name: record[name] for name in names if name in record}
        case "rating":
            return _rating_view(record)
        case _:
            return _ranking_view(record, order)


def _ranking_view(record: Mapping[str, Any], order: tuple[str, ...]) -> View:
    num_tiers = max(record["ranks"].values(), default=0)
    tiers: list[list[int]] = [[] for _ in range(num_tiers)]
    for name, rank in record["ranks"].items():
        tiers[rank - 1].append(order.index(name))
    index = {name: str(i) for i, name in enumerate(order)}
    flags: dict[str, dict[str, bool]] = {}
    for key, value in (("flags", True), ("flags_no", False)):
        for name, chosen in record.get(key, {}).items():
            flags.setdefault(index[name], {}).update(dict.fromkeys(chosen, value))

    def by_index(key: str) -> View:
        return {index[name]: value for name, value in record.get(key, {}).items()}

    return {
        "tiers": tiers,
        "flags": flags,
        "ratings": by_index("ratings"),
        "scales": by_index("scales"),
        "notes": by_index("output_notes"),
        "prompt_flags": record.get("prompt_flags", {}),
        "prompt_scales": record.get("prompt_scales", {}),
        "note": record.get("notes", ""),
        "seeded": record.get("seeded", False),
    }


def _rating_view(record: Mapping[str, Any]) -> View:
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


def _text(text: str) -> View:
    """Return a text formatted and as it is."""
    return {"html": safe_html(text), "plain": plain_html(text)}


def _optional_text(text: str | None) -> View | None:
    return None if text is None else _text(text)


def _guideline(form: Form) -> View:
    words = form.guideline if isinstance(form.guideline, Mapping) else {"en": form.guideline}
    return {language: safe_html(text) for language, text in words.items()}
