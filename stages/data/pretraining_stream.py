"""Pretraining text as examples of at most so many tokens, streamed.

Documents begin as the tokenizer begins a text (BOS, where it puts one) and end with EOS. Packed,
they are joined and cut into equal blocks, as in the pretraining of large models; unpacked, every
document is an example of its own, which suits a model that never had two in one context.
Nothing but the current document is in memory, so the text may be of any size.

Dimension key:  B examples,  L tokens of an example.
"""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stages.data.padding import pad_right
from stages.data.template import document_ids
from stages.data.text_stream import TextStream


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
        self._document_ids: list[int] = []  # of the document that the next block continues
        self._used = 0  # its tokens that are in blocks already

    def next(self, count: int) -> tuple[Tensor, Tensor]:
        """(ids_BL, mask_BL) of the next `count` examples; mask true = counts.

        Raises ValueError where packed text is too short for one block.
        """
        rows = []
        for _ in range(count):
            rows.append(self._block() if self.pack else self._document())
            self.num_drawn += 1
        return pad_right(rows, pad_id=0)

    def state(self) -> dict[str, Any]:
        """The position in the stream, for a checkpoint."""
        rest = self._document_ids[self._used :]
        return {"texts": self.texts.state(), "rest": rest, "num_drawn": self.num_drawn}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue at the same token of the same document."""
        self.texts.restore(state["texts"])
        self._document_ids, self._used = list(state["rest"]), 0
        self.num_drawn = state["num_drawn"]

    def _document(self) -> list[int]:
        text = document_ids(self.tokenizer, self.texts.next())
        document = [*text, int(self.tokenizer.eos_token_id)]
        return document if self.pack else document[: self.tokens]

    def _block(self) -> list[int]:
        block: list[int] = []
        while len(block) < self.tokens:
            if self._used == len(self._document_ids):
                self._document_ids, self._used = self._document(), 0
                if self.texts.turn > 0 and self.num_drawn == 0:  # a pass made no block
                    self._refuse(len(block))
            taken = self._document_ids[self._used : self._used + self.tokens - len(block)]
            self._used += len(taken)
            block += taken
        return block

    def _refuse(self, tokens: int) -> None:
        raise ValueError(
            f"{self.texts.path} has {tokens} tokens, expected at least "
            f"pretraining.tokens_per_example ({self.tokens})"
        )
