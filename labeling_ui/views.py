"""What the page is shown of a task, and its own earlier answers, in the page's own form.

Outputs are numbers in the order shown: neither ids nor names of models leave the server.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from labeling_ui.forms import Form, TaskKind
from labeling_ui.rendering import plain_html, safe_html, snippet
from labeling_ui.store.records import RoomTask, TextTask, WritingTask
from labeling_ui.tasks.assignment import Lease
from reward_models.records import Ranking, RankingTask

Shown = dict[str, Any]


def shown_forms(forms: Mapping[TaskKind, Form]) -> Shown:
    """The questions of each kind of task, and their guidelines as HTML by language."""
    return {
        "forms": {kind: form.model_dump(exclude={"guideline"}) for kind, form in forms.items()},
        "guidelines": {kind: _guideline(form) for kind, form in forms.items()},
    }


def shown_task(lease: Lease, task: RoomTask) -> Shown:
    """A task as the page sees it."""
    outputs: list[str] = []
    more: Shown = {}
    match task:
        case RankingTask():
            by_id = {response.id: response.text for response in task.responses}
            outputs = [by_id[name] for name in lease.shown]
        case TextTask():
            outputs = [task.text]
        case WritingTask():
            more = {"shape": task.shape, "use_case": _both(task.use_case)}
    return {
        "token": lease.token,
        "kind": lease.kind,
        "amends": lease.state == "done",
        "history": [{"role": turn.role, **both(turn.content)} for turn in task.history],
        "prompt": _both(task.prompt),
        "context": _both(task.context),
        "outputs": [{**both(text), "snippet": snippet(text)} for text in outputs],
        "draft": lease.draft,
        "revision": lease.revision,
        **more,
    }


def shown_ranks(rankings: Iterable[Ranking], shown: tuple[str, ...]) -> list[list[int]]:
    """Each annotator's ranks in the order shown, without their names: for who settles a dispute."""
    return [[ranking.ranks[name] for name in shown] for ranking in rankings]


def both(text: str) -> Shown:
    """A text formatted, and as it is."""
    return {"html": safe_html(text), "plain": plain_html(text)}


def as_body(kind: str, record: Mapping[str, Any], shown: tuple[str, ...]) -> Shown:
    """A stored answer as the page's own form, so that it can be amended."""
    match kind:
        case "demonstration" | "prompt":
            names = ("prompt", "response", "instruction", "pairs", "note")
            return {name: record[name] for name in names if name in record}
        case "rating":
            return _rating_body(record)
        case _:
            return _ranking_body(record, shown)


def _ranking_body(record: Mapping[str, Any], shown: tuple[str, ...]) -> Shown:
    place = {name: str(i) for i, name in enumerate(shown)}
    num_tiers = max(record["ranks"].values(), default=0)
    tiers: list[list[int]] = [[] for _ in range(num_tiers)]
    for name, rank in record["ranks"].items():
        tiers[rank - 1].append(shown.index(name))
    flags: dict[str, dict[str, bool]] = {}
    for key, value in (("flags", True), ("flags_no", False)):
        for name, chosen in record.get(key, {}).items():
            flags.setdefault(place[name], {}).update(dict.fromkeys(chosen, value))

    def by_place(key: str) -> Shown:
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


def _rating_body(record: Mapping[str, Any]) -> Shown:
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


def _both(text: str | None) -> Shown | None:
    return None if text is None else both(text)


def _guideline(form: Form) -> Shown:
    words = form.guideline if isinstance(form.guideline, Mapping) else {"en": form.guideline}
    return {language: safe_html(text) for language, text in words.items()}
