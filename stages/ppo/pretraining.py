"""The pretraining text that PPO-ptx mixes in: documents joined by EOS, cut into equal blocks.

Dimension key:  B blocks,  L tokens of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.ppo.randomness import endless_order


@dataclass(frozen=True, slots=True)
class PretrainingBlocks:
    """All blocks of the pretraining set; `draw` walks through them in a seeded order by pass."""

    ids_BL: Tensor
    seed: int

    @classmethod
    def pack(
        cls, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, tokens: int, *, seed: int
    ) -> Self:
        """Join the texts with EOS and cut; the rest that fills no block is left out.

        Raises ValueError where there is too little text for one block.
        """
        eos = tokenizer.eos_token_id
        joined: list[int] = []
        for text in texts:
            joined += [*tokenizer.encode(text, add_special_tokens=False), eos]
        num_blocks = len(joined) // tokens
        if num_blocks == 0:
            raise ValueError(
                f"the pretraining set has {len(joined)} tokens, expected at least "
                f"pretraining.tokens_per_example ({tokens})"
            )
        ids_BL = torch.tensor(joined[: num_blocks * tokens]).view(num_blocks, tokens)
        return cls(ids_BL, seed)

    def draw(self, first: int, count: int) -> Tensor:
        """Blocks `first` .. `first + count` of the endless walk."""
        return self.ids_BL[endless_order(len(self.ids_BL), first, count, self.seed, "pretraining")]


def pretraining_nll(model: PreTrainedModel, ids_BL: Tensor) -> Tensor:
    """Summed negative log-likelihood in nats of every token but each block's first, float32."""
    position_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device).expand_as(ids_BL)
    logits_BLV = model(input_ids=ids_BL, position_ids=position_BL, use_cache=False).logits
    return cross_entropy(
        logits_BLV[:, :-1].flatten(0, 1).float(), ids_BL[:, 1:].flatten(), reduction="sum"
    )
