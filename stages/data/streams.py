"""Documents of a file, one at a time and without end, in an order that the seed decides.

The file is read in windows of so many documents. A window's documents come in a random order of
their own, then the next window's; after the last one a new pass begins, in another order. What is
held in memory is one document and where a window's documents begin, whatever the file's size, and
where the stream stands is three numbers, so that a run which goes on reads on at the same document.
"""

import json
from array import array
from pathlib import Path

import torch

from stages.seeding import generator_for

WINDOW = 10_000  # documents that are shuffled among themselves


class TextStream:
    """The texts of JSON lines {"text": ...}; ValueError where there is none, or a line is none."""

    def __init__(self, path: Path, seed: int, *, window: int = WINDOW) -> None:
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        self.path, self.seed, self.window = path, seed, window
        self.turn, self._start, self._used = 0, 0, 0
        self._look_ahead()
        if not self._offsets:
            raise ValueError(f"{path}: no text in it")

    def next(self) -> str:
        """The next document."""
        if self._used == len(self._offsets):
            self._start, self._used = self._end, 0
            self._look_ahead()
        if not self._offsets:  # the file is read through
            self.turn, self._start = self.turn + 1, 0
            self._look_ahead()
        offset = self._offsets[int(self._order[self._used])]
        self._used += 1
        return self._read(offset)

    def state(self) -> dict[str, int]:
        """Where the stream stands: pass, byte at which the window begins, documents taken of it."""
        return {"turn": self.turn, "start": self._start, "used": self._used}

    def restore(self, state: dict[str, int]) -> None:
        """Go on from what `state` returned."""
        self.turn, self._start, self._used = state["turn"], state["start"], state["used"]
        self._look_ahead()

    def _look_ahead(self) -> None:
        """Find where the documents of the window begin, and their order."""
        self._offsets, self._end = array("Q"), self._start
        with self.path.open("rb") as lines:
            lines.seek(self._start)
            for line in lines:
                if line.strip():
                    self._offsets.append(self._end)
                self._end += len(line)
                if len(self._offsets) == self.window:
                    break
        generator = generator_for(self.seed, "texts", self.turn, self._start)
        self._order = torch.randperm(len(self._offsets), generator=generator)

    def _read(self, offset: int) -> str:
        with self.path.open("rb") as lines:
            lines.seek(offset)
            line = lines.readline()
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise ValueError(f"{self.path}, byte {offset}: expected a line {{'text': ...}}")
        return text
