"""The completion record: what one model said to one prompt, and what scorers made of it.

    {"id", "suite", "model", "prompt_type", "prompt", "context"?, "history"?, "completion", "k",
     "generation": {...}, "finish_reason", "scores": {scorer: {metric: value | null} | null},
     "score_meta": {scorer: {version, sha256, threshold}}}

`id` names the prompt, so that the answers of all models to it share one id: they are paired.
`history` are the turns of the conversation before the prompt, as messages.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from reward_models.records import Record, Turn

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
    history: tuple[Turn, ...] = ()
    prompt_extra: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Scores] = field(default_factory=dict)
    score_meta: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        texts = {"id": self.id, "model": self.model, "prompt": self.prompt}
        for name, value in {**texts, "completion": self.completion}.items():
            if not isinstance(value, str):
                raise ValueError(f"'{name}' is {type(value).__name__}, expected a string")
        turns = tuple(turn if isinstance(turn, Turn) else Turn(**turn) for turn in self.history)
        object.__setattr__(self, "history", turns)

    def to_json(self) -> dict[str, Any]:
        """The JSON object, with the prompt by itself."""
        row = Record.to_json(replace(self, history=()))
        turns = [turn.to_json() for turn in self.history]
        return row | ({"history": turns} if turns else {})

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
