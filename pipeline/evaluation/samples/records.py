"""The completion record: what one model said to one prompt, and what scorers made of it.

    {"id", "suite", "model", "prompt_type", "prompt", "context"?, "completion", "k",
     "generation": {...}, "finish_reason", "scores": {scorer: {metric: value | null} | null},
     "score_meta": {scorer: {version, sha256, threshold}}}

A prompt with earlier turns is `messages` instead (see reward_models/conversations.py).
`id` names the prompt, so that the answers of all models to it share one id: they are paired.
"""

from collections.abc import Mapping
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
    whole_number,
)

_NAMES = ("id", "model", "suite", "prompt_type")
_OBJECTS = ("generation", "prompt_extra", "scores", "score_meta")
Scores = Mapping[str, float | None] | None


@dataclass(frozen=True, slots=True)
class Completion(Record):
    """One completion. A scorer's entry is null where it failed and {} where it has no say."""

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
        texts = {"id": self.id, "model": self.model, "prompt": self.prompt}
        for name, value in {**texts, "completion": self.completion}.items():
            if not isinstance(value, str):
                raise ValueError(f"'{name}' is {type(value).__name__}, expected a string")

    @property
    def ended(self) -> bool:
        """Whether the response stopped by itself, not by the token limit."""
        return self.finish_reason != "length"

    def has(self, scorer: str, metric: str) -> bool:
        """Whether the scorer had to say something about this row: a value or a failure."""
        if scorer not in self.scores:
            return False
        found = self.scores[scorer]
        return found is None or metric in found

    def score(self, scorer: str, metric: str) -> float | None:
        """The value, or None where the scorer failed."""
        found = self.scores[scorer]
        return None if found is None else found[metric]


def completion_from(row: Mapping[str, Any]) -> Completion:
    """The completion of a row that anybody may have written.

    The record itself checks little, because tables make millions of them.
    """
    named = {name: required_name(name, row[name]) for name in _NAMES if row.get(name) is not None}
    objects = {name: mapping(name, row[name]) for name in _OBJECTS if name in row}
    checks = {
        "context": optional_text("context", row.get("context")),
        "category": optional_name("category", row.get("category")),
        "finish_reason": optional_name("finish_reason", row.get("finish_reason")),
        "answerable": flag("answerable", row.get("answerable")),
        "k": whole_number("k", row.get("k", 0)),
        "n_tokens": None
        if row.get("n_tokens") is None
        else whole_number("n_tokens", row["n_tokens"]),
    }
    for scorer, scores in objects.get("scores", {}).items():
        for metric, value in mapping(f"scores of {scorer}", scores).items():
            number(f"{metric} of {scorer}", value)
    for scorer, about in objects.get("score_meta", {}).items():
        mapping(f"score_meta of {scorer}", about)
    given = {name: value for name, value in checks.items() if name in row}
    return Completion.from_json({**row, **named, **objects, **given})
