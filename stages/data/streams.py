"""Documents of a file, one at a time and without end, in an order that depends on the seed.

The file is read in windows. A window's documents come in a random order, then the next window's;
after the last one a new pass begins, in another order. In memory are one document and the offsets
of a window's documents, whatever the file's size. The state of the stream is three numbers, so that
a run which resumes continues with the same document.
"""

import json
from array import array
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stages.data.padding import pad_right
from stages.data.template import document_ids
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
        """Return the next document."""
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
        """Return the number of the pass, the window's first byte, and the documents taken of it."""
        return {"turn": self.turn, "start": self._start, "used": self._used}

    def restore(self, state: dict[str, int]) -> None:
        """Continue from what `state` returned."""
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


class PretrainingStream:
    """Examples of `tokens` tokens from a file of JSON lines {"text": ...}, without end.

    Every rank reads the same stream and uses its part of what `next` returns.
    """

    def __init__(
        self, path: Path, tokenizer: PreTrainedTokenizerBase, tokens: int, *, pack: bool, seed: int
    ) -> None:
        self.texts = TextStream(path, seed)
        self.tokenizer, self.tokens, self.pack = tokenizer, tokens, pack
        self.num_drawn = 0
        self._begun: list[int] = []  # the document that the next block continues
        self._used = 0  # tokens of it that blocks have already

    def next(self, count: int) -> tuple[Tensor, Tensor]:
        """Return (ids_BL, mask_BL) of the next `count` examples; mask true = counts.

        Raises ValueError where packed text is too short for one block.
        """
        rows = []
        for _ in range(count):
            rows.append(self._block() if self.pack else self._document())
            self.num_drawn += 1
        return pad_right(rows, pad_id=0)

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        rest = self._begun[self._used :]
        return {"texts": self.texts.state(), "rest": rest, "num_drawn": self.num_drawn}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue at the same token of the same document."""
        self.texts.restore(state["texts"])
        self._begun, self._used = list(state["rest"]), 0
        self.num_drawn = state["num_drawn"]

    def _document(self) -> list[int]:
        text = document_ids(self.tokenizer, self.texts.next())
        whole = [*text, int(self.tokenizer.eos_token_id)]
        return whole if self.pack else whole[: self.tokens]

    def _block(self) -> list[int]:
        block: list[int] = []
        while len(block) < self.tokens:
            if self._used == len(self._begun):
                self._begun, self._used = self._document(), 0
                if self.texts.turn > 0 and self.num_drawn == 0:  # a pass made no block
                    raise ValueError(
                        f"{self.texts.path} has {len(block)} tokens, expected at least "
                        f"pretraining.tokens_per_example ({self.tokens})"
                    )
            taken = self._begun[self._used : self._used + self.tokens - len(block)]
            self._used += len(taken)
            block += taken
        return block
