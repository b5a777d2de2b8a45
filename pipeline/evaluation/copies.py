"""Rows that are copies of others, and the order of models, told without holding any text.

Dimension key:  R rows in the order of the files.
"""

import hashlib
import json
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = Mapping[str, Any]
INDEX = {"", "index", "Unnamed: 0"}  # columns that number the rows
_DIGEST = np.dtype([("high", "u8"), ("low", "u8")])


class Copies:
    """Rows that can only be copies of others, found by their hashes alone.

    A row with a number is a copy of one that is equal in every column. Rows without a number may be
    samples that happen to agree; they are copies if, within a model and prompt type, the numbers of
    times they occur have a common divisor, as in a file that was appended to itself. The second
    rule also holds for rows that were numbered anew after the copying.
    """

    def __init__(self) -> None:
        self.numbered = bytearray()  # a row's digest; of its place where it has no number
        self.bare = bytearray()  # its digest without the number
        self.group = array("i")
        self.groups: dict[tuple[str, str], int] = {}

    def add(self, group: tuple[str, str], raw: Row) -> None:
        """Count a row of this model and prompt type."""
        bare = _digest(raw, numbered=False)
        self.bare += bare
        if INDEX.isdisjoint(raw):
            self.numbered += len(self.group).to_bytes(16, "little")
        else:
            self.numbered += _digest(raw)
        self.group.append(self.groups.setdefault(group, len(self.groups)))

    def settle(self, notes: list[str]) -> NDArray[np.bool_]:
        """Whether each row counts, (R,); adds a sentence that says how many do not."""
        kept_R = np.zeros(len(self.group), dtype=bool)
        if not kept_R.size:
            return kept_R
        _, first = np.unique(np.frombuffer(self.numbered, _DIGEST), return_index=True)
        first.sort()
        _, same, count = np.unique(
            np.frombuffer(self.bare, _DIGEST)[first], return_inverse=True, return_counts=True
        )
        group_of = np.zeros(len(count), dtype=np.int32)
        group_of[same] = np.frombuffer(self.group, np.int32)[first]
        divisor = np.zeros(len(self.groups), dtype=np.int64)
        np.gcd.at(divisor, group_of, count)
        kept_R[first] = _occurrence(same, count) < (count // divisor[group_of])[same]
        if dropped := int(kept_R.size - kept_R.sum()):
            notes.append(f"{dropped} of {kept_R.size} rows repeat another row exactly; dropped")
        return kept_R


def _occurrence(same_R: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many equal rows stand before each row."""
    order = np.argsort(same_R, kind="stable")
    place_R = np.empty_like(same_R)
    place_R[order] = np.arange(same_R.size) - np.repeat(np.cumsum(count) - count, count)
    return place_R


def _digest(raw: Row, *, numbered: bool = True) -> bytes:
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
        self.names: dict[str, None] = {}
        self.last: str | None = None
        self.together = True

    def add(self, model: str, raw: Row, *, ours: bool) -> None:
        """A row of this model."""
        self.ours = self.ours and ours
        if model != self.last:
            self.together = self.together and model not in self.names
            self.names[model] = None
            self.last = model
        for name in INDEX & raw.keys():
            if str(raw[name]).strip().isdecimal():
                number = int(raw[name])
                self.numbers[model] = min(number, self.numbers.get(model, number))

    def models(self) -> list[str]:
        """Each once."""
        names = list(self.names)
        if self.ours:
            return names
        if all(name in self.numbers for name in names):
            return sorted(names, key=self.numbers.__getitem__)
        return names if self.together else sorted(names)
