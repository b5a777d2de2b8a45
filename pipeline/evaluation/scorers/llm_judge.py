"""Preference by a language model as judge: each pair is judged in both orders.

A judge leans to the first response or to the longer one. So the win is the mean over both orders,
the share of pairs where the verdict followed the position is reported, and a pair with a failed or
unreadable verdict is a failure, not a tie.
"""

import re
from collections.abc import Sequence
from hashlib import sha256

from pipeline.evaluation.samples.records import Completion, Scores
from pipeline.evaluation.scorers.endpoint import Bill, Endpoint, Message, Reply

JUDGE = "judge "  # a judge's name begins so
INSTRUCTION = """\
You compare two responses, A and B, to one prompt. Judge which one a user would rather have: does it
do what the prompt asks, is what it says true and supported by the given passage, is it harmless?
Length by itself is no merit. Do not let the order of the responses matter.
Think in at most three sentences. Then write a last line that is exactly one of
[[A]]   A is better
[[B]]   B is better
[[tie]] neither is better"""
_VERDICT = re.compile(r"\[\[(A|B|tie)\]\]", re.IGNORECASE)
_FIRST_WINS = {"a": 1.0, "b": 0.0, "tie": 0.5}


class PairJudge:
    """A scorer that compares every policy's response with the baseline's to the same prompt.

    Scores of a row: `win` (1, .5 or 0, mean of both orders) and `followed_position` (1 where
    swapping reversed the verdict). The baseline's own rows, and rows without a counterpart, get {}.
    """

    threshold = None
    sha256 = sha256(INSTRUCTION.encode()).hexdigest()  # the weights are elsewhere

    def __init__(self, endpoint: Endpoint, baseline: str) -> None:
        self.endpoint, self.baseline = endpoint, baseline
        self.version = endpoint.config.model  # a server gives no more
        self.name = f"{JUDGE}{self.version}"
        self.replies: list[Reply] = []  # so far, for the bill

    @property
    def bill(self) -> Bill:
        """The cost of the judging."""
        return self.endpoint.bill(self.replies)

    def score(self, rows: Sequence[Completion]) -> list[Scores]:
        """Send two requests for each row that has a counterpart."""
        against = {_pair(row): row for row in rows if row.model == self.baseline}
        compared = [r for r in rows if r.model != self.baseline and _pair(r) in against]
        conversations: list[list[Message]] = []
        for row in compared:
            other = against[_pair(row)]
            conversations += [_conversation(row, other), _conversation(other, row)]
        replies = self.endpoint.replies(conversations)
        self.replies += replies
        verdicts = iter([verdict(reply) for reply in replies])
        scores = {id(row): pair_scores(next(verdicts), next(verdicts)) for row in compared}
        return [scores.get(id(row), {}) for row in rows]


def verdict(reply: Reply) -> float | None:
    """Return 1 where the first response wins, 0 where it loses, .5 for a tie; None: unreadable."""
    verdicts = _VERDICT.findall(reply.text or "")
    return _FIRST_WINS[verdicts[-1].lower()] if verdicts else None


def pair_scores(in_order: float | None, swapped: float | None) -> Scores:
    """Return the scores of a pair from the verdicts on (response, baseline) and the reverse."""
    if in_order is None or swapped is None:
        return None
    followed = in_order == swapped and in_order != 0.5
    return {"win": (in_order + 1.0 - swapped) / 2, "followed_position": float(followed)}


def _pair(row: Completion) -> tuple[str, str, str, int]:
    """The key that two responses that are compared share."""
    return row.suite, row.id, row.prompt_type, row.k


def _conversation(first: Completion, second: Completion) -> list[Message]:
    turns = "\n\n".join(map(str, first.history))
    before = f"[Earlier turns]\n{turns}\n\n" if turns else ""
    passage = f"[Passage]\n{first.context}\n\n" if first.context else ""
    text = (
        f"{before}{passage}[Prompt]\n{first.prompt}\n\n[Response A]\n{first.completion}\n\n"
        f"[Response B]\n{second.completion}"
    )
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": text}]
