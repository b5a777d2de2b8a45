"""The completion record: a model's response to a prompt, and what scorers gave it.

    {"id", "suite", "model", "prompt_type", "prompt", "context"?, "completion", "k",
     "generation": {...}, "finish_reason", "scores": {scorer: {metric: value | null} | null},
     "score_meta": {scorer: {version, sha256, threshold}}}

A prompt with earlier turns is `messages` instead (see reward_models/conversations.py).
`id` names the prompt, so that the responses of all models to it share one id: they are paired.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from reward_models.conversations import Turn
from reward_models.records import Record
from reward_models.row_files import (
    flag,
    mapping,
    number,
    optional_name,
    optional_text,
    required_name,
    required_text,
    whole_number,
)

WORLD = "world"  # the key of a prompt's extra fields that the quickstart's gold judge reads
_OBJECTS = ("generation", "prompt_extra", "scores", "score_meta")
Scores = Mapping[str, float | None] | None


@dataclass(frozen=True, slots=True)
class Completion(Record):
    """One completion. A scorer's entry is null where it failed and {} where it does not apply."""

    required = ("id", "model", "prompt", "completion")
    id: str
    model: str
    prompt: str
    completion: str
    suite: str = "samples"
    prompt_type: str = "none"
    k: int = 0
    context: str | None = None
    category: str | None = None
    answerable: bool | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    finish_reason: str | None = None
    n_tokens: int | None = None
    prompt_extra: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Scores] = field(default_factory=dict)
    score_meta: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    history: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        for name in self.required:
            required_text(name, getattr(self, name), empty=True)

    @property
    def ended(self) -> bool:
        """True where the response ended by itself, not by the token limit."""
        return self.finish_reason != "length"

    def has(self, scorer: str, metric: str) -> bool:
        """Return whether the scorer applies to this row: it gave a value, or failed."""
        if scorer not in self.scores:
            return False
        scores = self.scores[scorer]
        return scores is None or metric in scores

    def score(self, scorer: str, metric: str) -> float | None:
        """The value, or None where the scorer failed."""
        scores = self.scores[scorer]
        return None if scores is None else scores[metric]


_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("id", "model", "suite", "prompt_type"), required_name),
    **dict.fromkeys(_OBJECTS, mapping),
    "context": optional_text,
    "category": optional_name,
    "finish_reason": optional_name,
    "answerable": flag,
    "k": whole_number,
    "n_tokens": lambda name, value: None if value is None else whole_number(name, value),
}


def completion_from(row: Mapping[str, Any]) -> Completion:
    """Return the completion of a row that anybody may have written; raise ValueError if it is none.

    The record itself checks little, because there are millions of them.
    """
    required = ("id", "model", "suite", "prompt_type")
    checked = {
        name: check(name, row[name])
        for name, check in _CHECKS.items()
        if name in row and (row[name] is not None or name not in required)
    }
    for scorer, scores in checked.get("scores", {}).items():
        for metric, value in mapping(f"scores of {scorer}", scores).items():
            number(f"{metric} of {scorer}", value)
    for scorer, about in checked.get("score_meta", {}).items():
        mapping(f"score_meta of {scorer}", about)
    return Completion.from_json({**row, **checked})
