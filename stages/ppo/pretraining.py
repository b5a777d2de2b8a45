"""The pretraining text that PPO-ptx mixes in, as examples of at most so many tokens, streamed.

Documents begin as the tokenizer begins a text (BOS, where it puts one) and end with EOS. Packed,
they are joined and cut into equal blocks, as large models read them; unpacked, every document is an
example of its own, which suits a model that never saw two in one context.
Nothing but the document at hand is in memory, so the text may be of any size.

Dimension key:  B examples,  L tokens of an example.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedTokenizerBase

from stages.data.padding import pad_right
from stages.data.streams import TextStream
from stages.data.template import document_ids
from stages.distributed.network import Network
from stages.distributed.sharding import autocast
from stages.ppo.config import PretrainingMix
from stages.ppo.tally import Tally


class PretrainingStream:
    """Examples of `tokens` tokens from a file of JSON lines {"text": ...}, without end.

    Every rank reads the same stream and takes its share of what `next` returns.
    """

    def __init__(
        self, path: Path, tokenizer: PreTrainedTokenizerBase, tokens: int, *, pack: bool, seed: int
    ) -> None:
        self.texts = TextStream(path, seed)
        self.tokenizer, self.tokens, self.pack = tokenizer, tokens, pack
        self.num_drawn = 0
        self._begun: list[int] = []  # the document that the next block goes on with
        self._used = 0  # tokens of it that blocks have already

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
        """Where the stream stands, for a checkpoint."""
        rest = torch.tensor(self._begun[self._used :], dtype=torch.long)
        return {"texts": self.texts.state(), "rest": rest, "num_drawn": self.num_drawn}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on at the same token of the same document."""
        self.texts.restore(state["texts"])
        self._begun, self._used = state["rest"].tolist(), 0
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
                    self._refuse(len(block))
            taken = self._begun[self._used : self._used + self.tokens - len(block)]
            self._used += len(taken)
            block += taken
        return block

    def _refuse(self, found: int) -> None:
        raise ValueError(
            f"{self.texts.path} has {found} tokens, expected at least "
            f"pretraining.tokens_per_example ({self.tokens})"
        )


def pretraining_nll(model: nn.Module, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Summed negative log-likelihood in nats of every token but each example's first, float32."""
    position_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device).expand_as(ids_BL)
    logits_BLV = model(input_ids=ids_BL, position_ids=position_BL, use_cache=False).logits
    label_BL = ids_BL.masked_fill(~mask_BL, -100)
    return cross_entropy(
        logits_BLV[:, :-1].flatten(0, 1).float(), label_BL[:, 1:].flatten(), reduction="sum"
    )


def add_gradients(
    policy: Network,
    accelerator: Accelerator,
    mix: PretrainingMix,
    drawn: tuple[Tensor, Tensor],
    tally: Tally,
    *,
    size: int,
) -> None:
    """Add coefficient * d(nll)/d(theta) of this rank's examples to the policy's gradients.

    `drawn` is what `PretrainingStream.next` gave, on every rank the same; `size` examples are read
    at once.
    """
    ranks, rank, count = accelerator.num_processes, accelerator.process_index, len(drawn[0])
    predicted = int(drawn[1][:, 1:].sum())  # over all ranks
    divisor = predicted if mix.normaliser == "token" else count
    # Blank rows, so that all ranks make equally many passes.
    even = (pad(x_BL, (0, 0, 0, -count % ranks)) for x_BL in drawn)
    ids_BL, mask_BL = (x_BL[rank::ranks].to(accelerator.device) for x_BL in even)
    for part_BL, part_mask_BL in zip(
        torch.split(ids_BL, size), torch.split(mask_BL, size), strict=True
    ):
        with autocast(accelerator):
            nll = pretraining_nll(policy.model, part_BL, part_mask_BL)
        policy.backward(mix.coefficient * nll / divisor)
        tokens = int(part_mask_BL[:, 1:].sum())
        tally.add("ppo/pretraining_loss_nats_per_token", nll.item(), tokens)
