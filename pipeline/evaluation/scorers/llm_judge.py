"""Preference by a language model as judge: each pair is shown in both orders.

A judge leans to the first answer or to the longer one. So the win is the mean over both orders, the
share of pairs where the verdict followed the place is reported, and a pair with a failed or
unreadable verdict is a failure, not a tie.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from pipeline.evaluation.samples.records import Completion, Scores
from pipeline.evaluation.samples.tables import Quantity, Table, tabulate
from pipeline.evaluation.scorers.endpoint import Bill, Endpoint, Message, Reply, ask, bill
from pipeline.evaluation.win_rates import parts
from stages.progress import Report, silent

SUITE, JUDGE = "preference_by_llm", "judge "  # a judge's name begins so
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


@dataclass(slots=True)
class PairJudge:
    """A scorer that compares every policy's response with the baseline's to the same prompt.

    Scores of a row: `win` (1, .5 or 0, mean of both orders) and `followed_position` (1 where
    swapping reversed the verdict). The baseline's own rows, and rows without a counterpart, get {}.
    """

    endpoint: Endpoint
    baseline: str
    memory: Path
    report: Report = silent
    threshold: float | None = None
    replies: list[Reply] = field(default_factory=list)  # so far, for the bill

    @property
    def name(self) -> str:
        """The served model's name."""
        return f"{JUDGE}{self.endpoint.model}"

    @property
    def version(self) -> str:
        """The served model's name; a server does not tell more."""
        return self.endpoint.model

    @property
    def sha256(self) -> str:
        """Of the judge's instruction: the weights are elsewhere."""
        return sha256(INSTRUCTION.encode()).hexdigest()

    @property
    def bill(self) -> Bill:
        """What the judging took."""
        return bill(self.endpoint, self.replies)

    def score(self, rows: Sequence[Completion]) -> list[Scores]:
        """Two requests for each row that has a counterpart."""
        against = {_pair(row): row for row in rows if row.model == self.baseline}
        compared = [r for r in rows if r.model != self.baseline and _pair(r) in against]
        asked: list[list[Message]] = []
        for row in compared:
            other = against[_pair(row)]
            asked += [_conversation(row, other), _conversation(other, row)]
        replies = ask(self.endpoint, asked, memory=self.memory, report=self.report)
        self.replies += replies
        verdicts = iter([verdict(reply) for reply in replies])
        found = {id(row): pair_scores(next(verdicts), next(verdicts)) for row in compared}
        return [found.get(id(row), {}) for row in rows]


def verdict(reply: Reply) -> float | None:
    """1 where the response shown first wins, 0 where the second, .5 for a tie; None: unreadable."""
    said = _VERDICT.findall(reply.text or "")
    return _FIRST_WINS[said[-1].lower()] if said else None


def pair_scores(mine_first: float | None, mine_second: float | None) -> Scores:
    """Both orders of one pair: `mine_first` and `mine_second` are wins of the response on top."""
    if mine_first is None or mine_second is None:
        return None
    place_decided = mine_first == mine_second and mine_first != 0.5
    win = (mine_first + 1.0 - mine_second) / 2
    return {"win": win, "followed_position": float(place_decided)}


def judge_tables(
    rows: Sequence[Completion], models: Sequence[str], *, scorer: str, baseline: str
) -> list[Table]:
    """Win rates against the baseline over all and by category, and how often the place decided."""
    compared = [model for model in models if model != baseline]
    judged = [row for row in rows if row.has(scorer, "win") and row.model != baseline]
    found = [
        tabulate(
            kept,
            Quantity(SUITE, "win_rate", part, scorer, "higher"),
            lambda row: row.score(scorer, "win"),
            compared,
        )
        for part, kept in parts(judged)
    ]
    followed = Quantity(SUITE, "followed_position", "all", scorer, "lower")
    return [
        *found,
        tabulate(judged, followed, lambda row: row.score(scorer, "followed_position"), compared),
    ]


def _pair(row: Completion) -> tuple[str, str, str, int]:
    """What two responses that are compared have in common."""
    return row.suite, row.id, row.prompt_type, row.k


def _conversation(first: Completion, second: Completion) -> list[Message]:
    turns = "\n\n".join(map(str, first.history))
    before = f"[Earlier turns]\n{turns}\n\n" if turns else ""
    passage = f"[Passage]\n{first.context}\n\n" if first.context else ""
    shown = (
        f"{before}{passage}[Prompt]\n{first.prompt}\n\n[Response A]\n{first.completion}\n\n"
        f"[Response B]\n{second.completion}"
    )
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": shown}]
