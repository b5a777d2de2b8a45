"""The ranking loss of the reward model (Ouyang et al. 2022, equation 1).

    loss = - mean over prompts of  mean over pairs (w beats l) of  log sigmoid(r_w - r_l)

A pair counts where both responses have a rank and the ranks differ: ties carry no gradient, and the
divisor of a prompt is its usable pairs, not K (K - 1) / 2 (the paper does not say which).

Where several annotators ranked one prompt there are two ways to weigh them:

    pool_pairs     the prompt stays one element of the mean; its pairs are the untied pairs of all
                   its annotators. Three rankings make its target surer, not its weight larger.
    keep_rankings  every ranking is an element; a prompt ranked three times weighs three times as
                   much, and in it each annotator the same, however many ties they gave.

With one annotator a prompt the two are equal.

Dimension key:  B prompts,  A annotators of one prompt,  K responses to one prompt.
Rank 1 is best; rank 0 stands for no rank (an absent response or annotator).
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def ranking_loss(reward_BK: Tensor, rank_BK: Tensor) -> Tensor:
    """Average over prompts of the average over untied pairs, one ranking a prompt.

    Every response is scored once and compared K - 1 times, so a prompt costs K forward passes, and
    a prompt with many pairs weighs no more than one with few. Without a usable pair it is 0.
    """
    weight_BKK = pool_pairs(rank_BK[:, None, :])
    return summed_loss(reward_BK, weight_BKK) / num_elements(weight_BKK).clamp(min=1)


def summed_loss(reward_BK: Tensor, weight_BKK: Tensor) -> Tensor:
    """The weighted sum over pairs of -log sigmoid(r_i - r_j), in float32 or wider.

    Divide by `num_elements` of the whole batch, over all ranks and accumulated micro-batches.
    """
    reward_BK = reward_BK if reward_BK.dtype == torch.float64 else reward_BK.float()
    gap_BKK = reward_BK[:, :, None] - reward_BK[:, None, :]
    return -(logsigmoid(gap_BKK) * weight_BKK.to(gap_BKK.dtype)).sum()


def num_elements(weight_BKK: Tensor) -> Tensor:
    """How many elements the weights of a batch add up to: usable prompts, or usable rankings."""
    return weight_BKK.sum((1, 2)).round().sum().float()


def pool_pairs(rank_BAK: Tensor) -> Tensor:
    """weight_BKK of "i beats j": each prompt's untied pairs, from all annotators, add up to 1."""
    wins_BKK = _wins(rank_BAK).sum(1)
    pairs_B11 = wins_BKK.sum((1, 2), keepdim=True)
    return wins_BKK / pairs_B11.clamp(min=1)


def keep_rankings(rank_BAK: Tensor) -> Tensor:
    """weight_BKK of "i beats j": the untied pairs of each annotator's ranking add up to 1."""
    wins_BAKK = _wins(rank_BAK)
    pairs_BA11 = wins_BAKK.sum((2, 3), keepdim=True)
    return (wins_BAKK / pairs_BA11.clamp(min=1)).sum(1)


def _wins(rank_BAK: Tensor) -> Tensor:
    """wins_BAKK: 1 where annotator A ranks response i (third axis) better than j (fourth axis)."""
    ranked_BAK = rank_BAK > 0
    both_BAKK = ranked_BAK[:, :, :, None] & ranked_BAK[:, :, None, :]
    return ((rank_BAK[:, :, :, None] < rank_BAK[:, :, None, :]) & both_BAKK).double()
