"""Prompts by number: each id is held once, and who answered what is a byte a prompt.

Dimension key:  N prompts.
"""

from array import array
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

Part = tuple[str, str]  # suite and prompt type
_BITS = 64  # sample numbers that fit into one word


class PromptNumbers:
    """Ids in the order in which they first occur, and which of them a model answered."""

    def __init__(self) -> None:
        self.number: dict[str, int] = {}
        self._answered: dict[Part, dict[str, bytearray]] = defaultdict(
            lambda: defaultdict(bytearray)
        )

    def add(self, part: Part, model: str, prompt: str) -> None:
        """A row: this model answered this prompt."""
        number = self.number.setdefault(prompt, len(self.number))
        seen = self._answered[part][model]
        seen.extend(bytes(max(0, number + 1 - len(seen))))
        seen[number] = 1

    def answered(self) -> dict[Part, dict[str, NDArray[np.bool_]]]:
        """For each part and model whether it answered each prompt, (N,)."""
        total = len(self.number)
        return {
            part: {
                model: np.frombuffer(seen.ljust(total, b"\0"), dtype=bool)
                for model, seen in seen_of.items()
            }
            for part, seen_of in self._answered.items()
        }


class SampleNumbers:
    """Which samples of each prompt of one model, suite and prompt type were taken: bits."""

    def __init__(self, prompts: int) -> None:
        self.taken = array("i", bytes(4 * prompts))
        self._bits = array("Q", bytes(8 * prompts))
        self._others: set[tuple[int, int]] = set()

    def take(self, prompt: int, k: int | None) -> tuple[int, bool]:
        """The sample's number, `k` or else the count so far, and whether it is a new one."""
        self.taken[prompt] += 1
        number = self.taken[prompt] - 1 if k is None else k
        inside = 0 <= number < _BITS
        if self._bits[prompt] >> number & 1 if inside else (prompt, number) in self._others:
            return number, False
        if k is not None and inside:
            self._bits[prompt] |= 1 << number
        elif k is not None:
            self._others.add((prompt, number))
        return number, True
