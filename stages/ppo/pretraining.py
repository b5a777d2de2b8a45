"""The pretraining text that PPO-ptx mixes in, as examples of at most so many tokens.

Packed, documents are joined by EOS and cut into equal blocks, as large models read them; unpacked,
every document is an example of its own, which suits a model that never saw two in one context.

Dimension key:  B examples,  L tokens of an example.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.data.padding import pad_right
from stages.ppo.randomness import endless_order


@dataclass(frozen=True, slots=True)
class PretrainingExamples:
    """The pretraining set; `draw` walks through it in a seeded order by pass. Mask: counts."""

    ids_BL: Tensor
    mask_BL: Tensor
    seed: int

    @classmethod
    def pack(
        cls, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, tokens: int, *, seed: int
    ) -> Self:
        """Join the texts with EOS and cut; the rest that fills no block is left out.

        Raises ValueError where there is too little text for one block.
        """
        joined = [token for row in _encoded(texts, tokenizer) for token in row]
        num_blocks = len(joined) // tokens
        if num_blocks == 0:
            raise ValueError(
                f"the pretraining set has {len(joined)} tokens, expected at least "
                f"pretraining.tokens_per_example ({tokens})"
            )
        ids_BL = torch.tensor(joined[: num_blocks * tokens]).view(num_blocks, tokens)
        return cls(ids_BL, torch.ones_like(ids_BL, dtype=torch.bool), seed)

    @classmethod
    def separate(
        cls, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, tokens: int, *, seed: int
    ) -> Self:
        """One document an example, with its EOS, cut after `tokens`."""
        rows = [row[:tokens] for row in _encoded(texts, tokenizer)]
        ids_BL, mask_BL = pad_right(rows, int(tokenizer.pad_token_id))
        return cls(ids_BL, mask_BL, seed)

    def draw(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """(ids_BL, mask_BL) of examples `first` .. `first + count` of the endless walk."""
        chosen = endless_order(len(self.ids_BL), first, count, self.seed, "pretraining")
        longest = int(self.mask_BL[chosen].sum(1).max())
        return self.ids_BL[chosen, :longest], self.mask_BL[chosen, :longest]


def _encoded(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    eos = tokenizer.eos_token_id
    return [[*tokenizer.encode(text, add_special_tokens=False), eos] for text in texts]


def pretraining_nll(model: PreTrainedModel, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Summed negative log-likelihood in nats of every token but each example's first, float32."""
    position_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device).expand_as(ids_BL)
    logits_BLV = model(input_ids=ids_BL, position_ids=position_BL, use_cache=False).logits
    label_BL = ids_BL.masked_fill(~mask_BL, -100)
    return cross_entropy(
        logits_BLV[:, :-1].flatten(0, 1).float(), label_BL[:, 1:].flatten(), reduction="sum"
    )
