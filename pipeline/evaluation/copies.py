"""Rows that are copies of others, and the order of models, told without holding any text."""

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]
INDEX = {"", "index", "Unnamed: 0"}  # columns that number the rows


class Copies:
    """Rows that can only be copies of others, found by their hashes alone.

    A row with a number is a copy of one that is equal in every column. Rows without a number may be
    samples that happen to agree; they are copies if, within a model and prompt type, the numbers of
    times they occur have a common divisor, as in a file that was appended to itself. The second
    rule also holds for rows that were numbered anew after the copying.
    """

    def __init__(self) -> None:
        self.exact: set[bytes] = set()
        self.total = 0
        self.group_of: dict[bytes, tuple[str, str]] = {}
        self.unnumbered: dict[tuple[str, str], Counter[bytes]] = defaultdict(Counter)
        self.divisor: dict[tuple[str, str], int] = {}

    def add(self, group: tuple[str, str], raw: Row) -> None:
        """Count a row of this model and prompt type."""
        self.total += 1
        if not INDEX.isdisjoint(raw):
            key = _hash(raw)
            if key in self.exact:
                return
            self.exact.add(key)
        bare = _hash(raw, numbered=False)
        self.unnumbered[group][bare] += 1
        self.group_of[bare] = group

    def settle(self, notes: list[str]) -> None:
        """Decide how often each row counts; say how many are dropped."""
        for group, counted in self.unnumbered.items():
            self.divisor[group] = math.gcd(*counted.values())
        kept = sum(c.total() // self.divisor[group] for group, c in self.unnumbered.items())
        if kept < self.total:
            notes.append(
                f"{self.total - kept} of {self.total} rows repeat another row exactly; dropped"
            )

    def times(self) -> "Left":
        """A count of how often each row may still be taken."""
        return Left(self)


class Left:
    """Takes each row as often as it counts."""

    def __init__(self, copies: Copies) -> None:
        self.copies = copies
        self.taken: Counter[bytes] = Counter()
        self.seen: set[bytes] = set()

    def take(self, raw: Row) -> bool:
        """Whether this row still counts."""
        if not INDEX.isdisjoint(raw):
            key = _hash(raw)
            if key in self.seen:
                return False
            self.seen.add(key)
        bare = _hash(raw, numbered=False)
        group = self.copies.group_of[bare]
        allowed = self.copies.unnumbered[group][bare] // self.copies.divisor[group]
        self.taken[bare] += 1
        return self.taken[bare] <= allowed


def _hash(raw: Row, *, numbered: bool = True) -> bytes:
    kept = raw if numbered else {name: raw[name] for name in raw if name not in INDEX}
    text = json.dumps(kept, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class Order:
    """The models in an order that shuffled rows do not change, since differences have a sign.

    Where rows are numbered, by the models' lowest numbers; else as they stand, if each model's rows
    stand together, and by name if they do not. Files of our own keep the order of training.
    """

    def __init__(self) -> None:
        self.ours = True
        self.numbers: dict[str, int] = {}
        self.blocks: list[str] = []

    def add(self, model: str, raw: Row, *, ours: bool) -> None:
        """A row of this model."""
        self.ours = self.ours and ours
        if not self.blocks or self.blocks[-1] != model:
            self.blocks.append(model)
        for name in INDEX & raw.keys():
            if str(raw[name]).strip().isdecimal():
                number = int(raw[name])
                self.numbers[model] = min(number, self.numbers.get(model, number))

    def models(self) -> list[str]:
        """Each once."""
        names = list(dict.fromkeys(self.blocks))
        if self.ours:
            return names
        if all(name in self.numbers for name in names):
            return sorted(names, key=self.numbers.__getitem__)
        return names if len(names) == len(self.blocks) else sorted(names)
