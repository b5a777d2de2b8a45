"""Live mode: annotators write a prompt of their own, and the policy answers it K times.

The room knows no model. It is given a function that answers, and makes a ranking task of the
outputs, which only the author of the prompt gets.
"""

import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from labeling_ui.tasks.assignment import Assignment, Lease
from reward_models.records import RankingTask, Response

CATEGORY = "live"
PROMPT_CHARACTERS = 8_000
Answer = Callable[[str, int], Sequence[Response]]  # a prompt and K; K outputs, each with its own id


@dataclass
class Live:
    """Fresh outputs on demand, for one person at a time."""

    answer: Answer
    num_outputs: int = 4
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, assignment: Assignment, prompt: str, annotator: str) -> Lease:
        """Make a task with fresh outputs on this prompt, leased to its author."""
        if not prompt.strip():
            raise ValueError("the prompt is empty")
        if len(prompt) > PROMPT_CHARACTERS:
            raise ValueError(f"the prompt is longer than {PROMPT_CHARACTERS} characters")
        if not self._lock.acquire(timeout=60):
            raise ValueError("the policy is busy with others' prompts; try again")
        try:
            outputs = tuple(self.answer(prompt, self.num_outputs))
        finally:
            self._lock.release()
        name = f"live-{secrets.token_hex(6)}"
        task = RankingTask(name, prompt, outputs, category=CATEGORY, extra={"asked_by": annotator})
        assignment.store.add_tasks([task], is_open=False)
        return assignment.take(annotator, name)
