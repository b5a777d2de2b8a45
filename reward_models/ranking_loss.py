"""The ranking loss of the reward model (Ouyang et al. 2022, equation 1).

    loss = - mean over elements of  mean over pairs (w beats l) of  log sigmoid(r_w - r_l)

A pair counts where both responses have a rank and the ranks differ: ties carry no gradient, and the
divisor of an element is its usable pairs, not K (K - 1) / 2 (the paper does not say which).

Where several annotators ranked one prompt, an element of the mean is one of two things:

    "prompt"   the prompt, with the untied pairs of all its annotators. Three rankings make its
               target surer, not its weight larger.
    "ranking"  every annotator's ranking: a prompt ranked three times weighs three times as much,
               and each of its annotators the same, however many ties they gave.

With one annotator a prompt the two are equal.

Dimension key:  B prompts,  A annotators of one prompt,  K responses to one prompt.
Rank 1 is best; rank 0 stands for no rank (an absent response or annotator).
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

BatchElement = Literal["prompt", "ranking"]


def ranking_loss(
    reward_BK: Tensor,
    rank_BAK: Tensor,
    element: BatchElement = "prompt",
    *,
    num_elements: Tensor | int | None = None,
) -> Tensor:
    """Return the loss in float32 or wider; 0 where no element has a usable pair.

    Every response is scored once and compared K - 1 times, so a prompt costs K forward passes.
    `num_elements` is given where this is a part of a batch: the `count_elements` of the whole, over
    all ranks and accumulated micro-batches, so that the parts add up to the loss of the whole.
    """
    reward_BK = reward_BK if reward_BK.dtype == torch.float64 else reward_BK.float()
    gap_BKK = reward_BK[:, :, None] - reward_BK[:, None, :]
    weight_BKK = pair_weights(rank_BAK, element).to(gap_BKK.dtype)
    if num_elements is None:
        num_elements = count_elements(rank_BAK, element).clamp(min=1)
    return -(logsigmoid(gap_BKK) * weight_BKK).sum() / num_elements


def pair_weights(rank_BAK: Tensor, element: BatchElement) -> Tensor:
    """Return weight_BKK of "i beats j" in float64: those of an element's untied pairs sum to 1."""
    wins_BAKK = _wins(rank_BAK, element)
    pairs_BA11 = wins_BAKK.sum((2, 3), keepdim=True)
    return (wins_BAKK / pairs_BA11.clamp(min=1)).sum(1)


def count_elements(rank_BAK: Tensor, element: BatchElement) -> Tensor:
    """Return the number of elements that have a usable pair."""
    return _wins(rank_BAK, element).sum((2, 3)).count_nonzero()


def _wins(rank_BAK: Tensor, element: BatchElement) -> Tensor:
    """wins_BAKK: how often response i (third axis) beats j (fourth) in an element (first two)."""
    ranked_BAK = rank_BAK > 0
    both_BAKK = ranked_BAK[:, :, :, None] & ranked_BAK[:, :, None, :]
    wins_BAKK = ((rank_BAK[:, :, :, None] < rank_BAK[:, :, None, :]) & both_BAKK).double()
    return wins_BAKK.sum(1, keepdim=True) if element == "prompt" else wins_BAKK
