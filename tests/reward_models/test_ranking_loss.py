"""The ranking loss against the equation, written out pair by pair in float64."""

import math
import random
from itertools import chain, combinations

import pytest
import torch
from torch import Tensor

from reward_models.ranking_loss import BatchElement, count_elements, pair_weights, ranking_loss

ELEMENTS: tuple[BatchElement, BatchElement] = ("prompt", "ranking")


def oracle(
    rewards: list[list[float]], rankings: list[list[list[int]]], element: BatchElement
) -> float:
    """Equation 1 over untied pairs; the mean is over prompts or over rankings."""
    elements = []
    for scores, given in zip(rewards, rankings, strict=True):
        losses: list[list[float]] = [[] for _ in given]
        for annotator, ranks in enumerate(given):
            for i, j in combinations(range(len(ranks)), 2):
                if ranks[i] != ranks[j]:
                    winner, loser = (i, j) if ranks[i] < ranks[j] else (j, i)
                    gap = scores[winner] - scores[loser]
                    losses[annotator].append(math.log1p(math.exp(-gap)))
        groups = [[*chain(*losses)]] if element == "prompt" else losses
        elements += [sum(group) / len(group) for group in groups if group]
    return sum(elements) / len(elements)


def batch(
    seed: int, annotators: int
) -> tuple[Tensor, Tensor, list[list[float]], list[list[list[int]]]]:
    """Prompts of K = 4 to 9 with ties, padded to 9 responses with rank 0."""
    rng = random.Random(seed)
    sizes = [4, 9, 6, 5, 8, 7]
    rewards = [[rng.gauss(0, 2) for _ in range(k)] for k in sizes]
    rankings = [
        [[rng.randint(1, k - 1) for _ in range(k)] for _ in range(annotators)] for k in sizes
    ]
    rankings[2] = [[1] * 6 for _ in range(annotators)]  # all tied
    reward_BK = torch.tensor(
        [row + [99.0] * (9 - len(row)) for row in rewards], dtype=torch.float64
    )
    rank_BAK = torch.tensor(
        [[ranks + [0] * (9 - len(ranks)) for ranks in given] for given in rankings]
    )
    return reward_BK, rank_BAK, rewards, rankings


def test_ranking_loss_is_log_two_when_all_rewards_are_equal() -> None:
    reward_BK, rank_BAK = torch.zeros(1, 4), torch.tensor([[[1, 2, 3, 4]]])
    assert ranking_loss(reward_BK, rank_BAK).item() == pytest.approx(math.log(2))


def test_a_hand_worked_prompt_with_a_tie_averages_its_two_untied_pairs() -> None:
    reward_BK, rank_BAK = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[[1, 2, 2]]])
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(-2))) / 2
    assert ranking_loss(reward_BK, rank_BAK).item() == pytest.approx(expected)


@pytest.mark.parametrize("annotators", [1, 3])
@pytest.mark.parametrize("element", ELEMENTS)
def test_four_to_nine_responses_equal_the_sum_over_pairs_in_float64(
    annotators: int, element: BatchElement
) -> None:
    reward_BK, rank_BAK, rewards, rankings = batch(annotators, annotators)
    expected = oracle(rewards, rankings, element)
    assert ranking_loss(reward_BK, rank_BAK, element).item() == pytest.approx(expected, rel=1e-12)


def test_with_one_annotator_both_ways_to_weigh_are_the_same() -> None:
    _, rank_BAK, _, _ = batch(0, 1)
    assert torch.equal(*(pair_weights(rank_BAK, element) for element in ELEMENTS))


def test_ties_carry_no_gradient() -> None:
    reward_BK = torch.randn(2, 3, requires_grad=True)
    ranking_loss(reward_BK, torch.tensor([[[1, 1, 1]], [[1, 1, 2]]])).backward()
    assert reward_BK.grad is not None
    assert reward_BK.grad[0].tolist() == [0.0, 0.0, 0.0]
    assert (reward_BK.grad[1] != 0).all()


def test_a_prompt_without_a_usable_pair_does_not_enter_the_mean() -> None:
    reward_BK = torch.tensor([[2.0, 1.0], [5.0, 7.0]])
    alone = ranking_loss(reward_BK[:1], torch.tensor([[[1, 2]]]))
    assert ranking_loss(reward_BK, torch.tensor([[[1, 2]], [[1, 1]]])) == alone


def test_without_any_usable_pair_the_loss_is_zero_and_finite_in_its_gradient() -> None:
    reward_BK = torch.randn(1, 3, requires_grad=True)
    loss = ranking_loss(reward_BK, torch.tensor([[[2, 2, 2]]]))
    loss.backward()
    assert loss.item() == 0.0
    assert reward_BK.grad is not None
    assert reward_BK.grad.isfinite().all()


def test_a_constant_added_to_a_prompt_s_scores_changes_nothing() -> None:
    reward_BK, rank_BAK, _, _ = batch(3, 2)
    shifted_BK = reward_BK + torch.randn(len(reward_BK), 1, dtype=torch.float64)
    assert torch.allclose(ranking_loss(reward_BK, rank_BAK), ranking_loss(shifted_BK, rank_BAK))


def test_the_order_of_responses_and_prompts_does_not_matter() -> None:
    reward_BK, rank_BAK, _, _ = batch(4, 2)
    other_BK, other_BAK = reward_BK.flip(0, 1), rank_BAK.flip(0, 2)
    assert torch.allclose(ranking_loss(reward_BK, rank_BAK), ranking_loss(other_BK, other_BAK))


@pytest.mark.parametrize("element", ELEMENTS)
def test_micro_batches_divided_by_the_whole_batch_s_elements_add_up_to_the_whole(
    element: BatchElement,
) -> None:
    reward_BK, rank_BAK, _, _ = batch(5, 3)
    count = count_elements(rank_BAK, element)
    parts = [
        ranking_loss(reward_BK[i : i + 2], rank_BAK[i : i + 2], element, num_elements=count)
        for i in (0, 2, 4)
    ]
    assert torch.allclose(torch.stack(parts).sum(), ranking_loss(reward_BK, rank_BAK, element))


def test_three_rankings_weigh_once_as_a_prompt_and_three_times_as_rankings() -> None:
    rank_BAK = torch.tensor([[[1, 2], [1, 2], [2, 1]], [[1, 2], [0, 0], [0, 0]]])
    assert pair_weights(rank_BAK, "prompt").sum((1, 2)).tolist() == [1.0, 1.0]
    assert pair_weights(rank_BAK, "ranking").sum((1, 2)).tolist() == [3.0, 1.0]
    assert [int(count_elements(rank_BAK, element)) for element in ELEMENTS] == [2, 4]


def test_half_precision_scores_give_a_float32_loss() -> None:
    reward_BK = torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16)
    loss = ranking_loss(reward_BK, torch.tensor([[[1, 2]]]))
    assert loss.dtype == torch.float32
