"""Ragged lists of token ids as one rectangle, and the positions that belong to it.

Masks are always explicit: a PAD id may also occur inside a text, so no mask comes from the ids.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def pad_right(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return (ids_BL, mask_BL), filled with `pad_id` on the right; mask true = counts.

    L is the longest sequence's length. An empty batch raises ValueError.
    """
    if not sequences:
        raise ValueError("no sequence to pad: the batch is empty")
    longest = max(len(sequence) for sequence in sequences)
    rows = [list(sequence) + [pad_id] * (longest - len(sequence)) for sequence in sequences]
    ids_BL = torch.tensor(rows, dtype=torch.long).reshape(len(sequences), longest)
    tokens_B = torch.tensor([len(sequence) for sequence in sequences])
    mask_BL = torch.arange(longest)[None, :] < tokens_B[:, None]
    return ids_BL, mask_BL


def positions(mask_BL: Tensor) -> Tensor:
    """Return position ids that count real tokens only, whichever side is padded; 0 at pads.

    The exclusive cumulative sum of the mask (implementation detail 3 of the N details of RLHF).
    """
    counts_BL = mask_BL.long()
    return (counts_BL.cumsum(dim=1) - counts_BL) * counts_BL
