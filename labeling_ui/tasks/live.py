"""Live mode: annotators write a prompt of their own, rank what a model answers, and may go on.

The room knows no model: it is given a function that answers, and makes a ranking task of the
outputs, which only the author of the prompt gets. The next turn of a conversation comes after the
output that this person ranked best, so that every turn is a ranking task whose history is what was
chosen before.
"""

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from labeling_ui.store.store import Store
from labeling_ui.tasks.assignment import Assignment, Lease
from reward_models.conversations import Turn
from reward_models.records import Prompt, RankingTask, Response

CATEGORY = "live"
PROMPT_CHARACTERS = 8_000
MOST_TURNS = 20  # of the annotator, in one conversation
WAIT_S = 60.0
# A prompt with the turns before it, and K; K outputs, each with its own id.
Answer = Callable[[Prompt, int], Sequence[Response]]


@dataclass(frozen=True, slots=True)
class Ranked:
    """A live task that its author has ranked, and the numbers of the best outputs as shown."""

    task: RankingTask
    lease: Lease
    best: tuple[int, ...]

    def chosen(self, output: int | None) -> Response:
        """Return the output that the conversation goes on after; None is the first of the best."""
        output = self.best[0] if output is None else output
        if output not in self.best:
            raise ValueError("a conversation goes on after an output that was ranked best")
        by_id = {response.id: response for response in self.task.responses}
        return by_id[self.lease.shown_order[output]]


@dataclass
class Live:
    """Fresh outputs on demand, for one person at a time."""

    answer: Answer
    num_outputs: int = 4
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(
        self,
        assignment: Assignment,
        prompt: str,
        annotator: str,
        after: Ranked | None = None,
        output: int | None = None,
    ) -> Lease:
        """Make a task with fresh outputs on this prompt, leased to its author.

        It goes on from a task that was ranked, `after`, and the output that was chosen there.
        """
        if not prompt.strip():
            raise ValueError("the prompt is empty")
        if len(prompt) > PROMPT_CHARACTERS:
            raise ValueError(f"the prompt is longer than {PROMPT_CHARACTERS} characters")
        name = f"live-{secrets.token_hex(6)}"
        history: tuple[Turn, ...] = ()
        extra: dict[str, Any] = {"asked_by": annotator, "conversation": name, "turn": 1}
        if after is not None:
            chosen, task = after.chosen(output), after.task
            history = (*task.history, Turn("user", task.prompt), Turn("assistant", chosen.text))
            names = {"conversation": task.extra["conversation"], "turn": task.extra["turn"] + 1}
            extra |= {**names, "continues": task.id, "chosen": chosen.id}
        if extra["turn"] > MOST_TURNS:
            raise ValueError(f"this conversation has {MOST_TURNS} turns already")
        if not self._lock.acquire(timeout=WAIT_S):
            raise ValueError("the policy is busy with others' prompts; try again")
        try:
            outputs = tuple(self.answer(Prompt(prompt, history=history), self.num_outputs))
        finally:
            self._lock.release()
        made = RankingTask(name, prompt, outputs, category=CATEGORY, history=history, extra=extra)
        assignment.store.add_tasks([made], is_open=False)
        return assignment.take(annotator, name)


def ranked(store: Store, lease: Lease, annotator: str) -> Ranked | None:
    """Return the live task of a lease as its author has ranked it; None for any other."""
    answer = store.latest_answer(lease.task, annotator)
    if lease.kind != "ranking" or "turn" not in lease.record or not (answer or {}).get("ranks"):
        return None
    assert answer is not None
    ranks: Mapping[str, int] = answer["ranks"]
    best = tuple(i for i, name in enumerate(lease.shown_order) if ranks[name] == 1)
    return Ranked(RankingTask.from_json(lease.record), lease, best)
