"""The mathematics of PPO against slow loops in float64, written from the equations."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stages.ppo import losses

ROOT = Path(__file__).parents[3]
GENERATOR = torch.Generator()


@pytest.fixture(autouse=True)
def seeded() -> None:
    GENERATOR.manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def mask_of(lengths: list[int], width: int, side: str) -> Tensor:
    columns = torch.arange(width)
    counts = torch.tensor(lengths)[:, None]
    return columns < counts if side == "right" else columns >= width - counts


def slow_advantages(
    rewards: list[float], values: list[float], gamma: float, lam: float
) -> list[float]:
    """Sum over l of (gamma lambda)^l delta_(t+l), with delta from the definition."""
    after = [*values[1:], 0.0]
    delta = [r + gamma * n - v for r, n, v in zip(rewards, after, values, strict=True)]
    return [
        sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, len(delta)))
        for t in range(len(delta))
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_divide_by_the_temperature_and_come_in_float32(
    dtype: torch.dtype, temperature: float
) -> None:
    logits_NV = (normal(5, 11) * 4).to(dtype)
    token_N = torch.tensor([0, 3, 10, 7, 7])
    found_N = losses.chosen_logprobs(logits_NV, token_N, temperature)
    assert found_N.dtype == torch.float32
    for n, token in enumerate(token_N.tolist()):
        weights = [math.exp(x / temperature) for x in logits_NV[n].double().tolist()]
        assert found_N[n].item() == pytest.approx(math.log(weights[token] / sum(weights)), abs=1e-5)


def test_at_temperature_one_logprobs_keep_no_copy_of_the_logits_for_the_gradient() -> None:
    logits_NV = normal(3, 11).float().requires_grad_()
    saved: list[int] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.shape == logits_NV.shape:
            saved.append(x.data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        losses.chosen_logprobs(logits_NV, torch.tensor([0, 3, 10]), 1.0)
    assert set(saved) == {logits_NV.data_ptr()}


@pytest.mark.parametrize(("cap", "gradient"), [(2.0, 0.16), (1.2, 0.12), (None, 0.1)])
def test_importance_weights_give_the_gradient_of_the_policys_own_samples_up_to_the_cap(
    cap: float | None, gradient: float
) -> None:
    """Two tokens, by hand: the sampler draws each half of the time, the policy p = (4/5, 1/5).

    With advantages (1, 0) the policy's own gradient is p_0 (1 - p_0) = 0.16 of -loss in its first
    logit. The weights are 8/5 and 2/5; unweighted, the sampler's draws give (1 - p_0) / 2 = 0.1.
    """
    logit_V = torch.tensor([math.log(4.0), 0.0], dtype=torch.float64, requires_grad=True)
    logprob_N = torch.log_softmax(logit_V, -1)  # one of each token, as the sampler draws them
    old_N, sampler_N = logprob_N.detach(), torch.full((2,), math.log(0.5), dtype=torch.float64)
    advantage_N = torch.tensor([1.0, 0.0], dtype=torch.float64)
    if cap is not None:
        weight_N = losses.importance_weights(old_N, sampler_N, cap=cap)
        assert weight_N.tolist() == pytest.approx([min(1.6, cap), 0.4], abs=1e-15)
        advantage_N = advantage_N * weight_N
    losses.policy_loss(logprob_N, old_N, advantage_N, clip=0.2, count=2.0).backward()
    assert (-logit_V.grad).tolist() == pytest.approx([gradient, -gradient], abs=1e-15)


def test_weighted_advantages_weight_the_clipped_surrogate() -> None:
    old_N, new_N, sampler_N, advantage_N = (normal(50) for _ in range(4))
    weight_N = losses.importance_weights(old_N, sampler_N, cap=1.5)
    terms = [
        losses.policy_loss(*(x[n : n + 1] for x in (new_N, old_N, advantage_N)), clip=0.2, count=1)
        for n in range(50)
    ]
    expected = sum(w * term for w, term in zip(weight_N, terms, strict=True))
    loss = losses.policy_loss(new_N, old_N, advantage_N * weight_N, clip=0.2, count=1.0)
    assert loss.item() == pytest.approx(float(expected), abs=1e-12)


def test_entropy_is_log_of_the_vocabulary_for_equal_logits_and_zero_for_certainty() -> None:
    assert losses.entropy(torch.zeros(1, 8), 1.0).item() == pytest.approx(math.log(8))
    certain_NV = torch.tensor([[200.0, 0.0, 0.0]])
    assert losses.entropy(certain_NV, 1.0).item() == pytest.approx(0.0)


def test_temperature_flattens_the_entropy() -> None:
    logits_NV = normal(1, 8) * 3
    assert losses.entropy(logits_NV, 2.0) > losses.entropy(logits_NV, 1.0)


def test_k1_and_k3_average_to_the_kl_and_k3_is_never_negative() -> None:
    policy_V, reference_V = normal(30).log_softmax(-1), normal(30).log_softmax(-1)
    exact = sum(
        math.exp(p) * (p - q) for p, q in zip(policy_V.tolist(), reference_V.tolist(), strict=True)
    )
    for estimate in (losses.kl_k1, losses.kl_k3):
        mean = (policy_V.exp() * estimate(policy_V, reference_V)).sum().item()
        assert mean == pytest.approx(exact, abs=1e-12)
    assert (losses.kl_k3(policy_V, reference_V) >= 0).all()
    assert (losses.kl_k1(policy_V, reference_V) < 0).any()


def test_all_kl_estimators_are_zero_for_equal_models() -> None:
    x_N = normal(4)
    for estimate in (losses.kl_k1, losses.kl_k3):
        assert torch.equal(estimate(x_N, x_N), torch.zeros_like(x_N))


@pytest.mark.parametrize("side", ["left", "right"])
def test_rewards_are_the_kl_penalty_with_the_score_at_the_last_token(side: str) -> None:
    mask_BT = mask_of([2, 3], 3, side)
    logprob_BT, reference_BT = torch.full((2, 3), -1.0), torch.full((2, 3), -1.5)
    found_BT = losses.shaped_rewards(
        torch.tensor([2.0, -1.0]), logprob_BT, reference_BT, mask_BT, 0.1
    )
    assert found_BT[0][mask_BT[0]].tolist() == pytest.approx([-0.05, 1.95])
    assert found_BT[1][mask_BT[1]].tolist() == pytest.approx([-0.05, -0.05, -1.05])
    assert (found_BT[~mask_BT] == 0).all()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (1.0, 0.0)])
def test_advantages_equal_the_sum_over_discounted_residuals(
    side: str, gamma: float, lam: float
) -> None:
    lengths, width = [1, 4, 7, 2], 7
    mask_BT = mask_of(lengths, width, side)
    reward_BT, value_BT = normal(4, width), normal(4, width)  # garbage outside the mask on purpose
    found_BT = losses.advantages(reward_BT, value_BT, mask_BT, gamma=gamma, lam=lam)
    for b in range(4):
        expected = slow_advantages(
            reward_BT[b][mask_BT[b]].tolist(), value_BT[b][mask_BT[b]].tolist(), gamma, lam
        )
        assert found_BT[b][mask_BT[b]].tolist() == pytest.approx(expected, abs=1e-12)
    assert (found_BT[~mask_BT] == 0).all()


def test_with_lambda_one_the_return_is_the_sum_of_the_rewards_to_come() -> None:
    reward_BT, value_BT = normal(1, 5), normal(1, 5)
    mask_BT = torch.ones(1, 5, dtype=torch.bool)
    advantage_BT = losses.advantages(reward_BT, value_BT, mask_BT, gamma=1.0, lam=1.0)
    to_come_BT = reward_BT.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(advantage_BT + value_BT, to_come_BT)


def test_scores_are_cut_before_a_missing_end_replaces_them() -> None:
    score_B, ended_B = torch.tensor([9.0, -9.0, 9.0]), torch.tensor([True, True, False])
    found_B = losses.final_scores(score_B, ended_B, clip=5.0, missing_eos=-6.0)
    assert found_B.tolist() == [5.0, -5.0, -6.0]
    assert losses.final_scores(score_B, ended_B, clip=None, missing_eos=None) is score_B


def test_whitening_gives_zero_mean_and_unit_variance_over_the_mask() -> None:
    x_BT, mask_BT = normal(3, 6) * 7 + 100, mask_of([2, 6, 3], 6, "left")
    found_BT = losses.whiten(x_BT, mask_BT)
    assert found_BT[mask_BT].mean().item() == pytest.approx(0.0, abs=1e-9)
    assert found_BT[mask_BT].var(correction=0).item() == pytest.approx(1.0, abs=1e-6)
    assert (found_BT[~mask_BT] == 0).all()


def test_policy_loss_equals_a_loop_over_tokens() -> None:
    new_N, old_N, advantage_N = normal(50) * 0.3, normal(50) * 0.3, normal(50)
    total = 0.0
    for new, old, advantage in zip(
        new_N.tolist(), old_N.tolist(), advantage_N.tolist(), strict=True
    ):
        ratio = math.exp(new - old)
        cut = max(0.8, min(1.2, ratio))
        total -= min(ratio * advantage, cut * advantage)
    result = losses.policy_loss(new_N, old_N, advantage_N, clip=0.2, count=50)
    assert result.item() == pytest.approx(total / 50, abs=1e-12)


def test_at_ratio_one_the_policy_gradient_is_minus_the_advantage() -> None:
    old_N, advantage_N = normal(6), normal(6)
    new_N = old_N.clone().requires_grad_()
    losses.policy_loss(new_N, old_N, advantage_N, clip=0.2, count=6).backward()
    torch.testing.assert_close(new_N.grad, -advantage_N / 6)


def test_clipped_tokens_are_those_without_gradient() -> None:
    old_N, advantage_N = normal(200), normal(200)
    new_N = (old_N + normal(200) * 0.5).requires_grad_()
    losses.policy_loss(new_N, old_N, advantage_N, clip=0.2, count=200).backward()
    spared_N = losses.policy_clipped(new_N, old_N, advantage_N, 0.2)
    assert torch.equal(new_N.grad == 0, spared_N)
    assert 0 < spared_N.sum() < 200


@pytest.mark.parametrize("clip", [0.2, None])
def test_value_loss_equals_a_loop_over_tokens(clip: float | None) -> None:
    value_N, old_N, return_N = normal(40), normal(40), normal(40)
    total = 0.0
    for value, old, target in zip(value_N.tolist(), old_N.tolist(), return_N.tolist(), strict=True):
        error = (value - target) ** 2
        if clip is not None:
            near = old + max(-clip, min(clip, value - old))
            error = max(error, (near - target) ** 2)
        total += 0.5 * error
    result = losses.value_loss(value_N, old_N, return_N, clip=clip, count=40)
    assert result.item() == pytest.approx(total / 40, abs=1e-12)


def test_clipped_values_are_those_without_gradient_beyond_the_clip() -> None:
    old_N, return_N = normal(200), normal(200)
    value_N = (old_N + normal(200) * 0.5).requires_grad_()
    losses.value_loss(value_N, old_N, return_N, clip=0.2, count=200).backward()
    clipped_N = losses.value_clipped(value_N, old_N, return_N, 0.2)
    assert torch.equal(value_N.grad == 0, clipped_N)
    assert 0 < clipped_N.sum() < 200
    assert not losses.value_clipped(value_N, old_N, return_N, None).any()


def test_losses_of_unequal_parts_add_up_to_the_loss_of_the_whole() -> None:
    """Divided by its own length, each part would be a mean of means."""
    new_N, old_N, advantage_N = normal(10), normal(10), normal(10)
    whole = losses.policy_loss(new_N, old_N, advantage_N, clip=0.2, count=10)
    parts = [
        losses.policy_loss(new_N[s], old_N[s], advantage_N[s], clip=0.2, count=10)
        for s in (slice(0, 1), slice(1, 10))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_the_mean() -> None:
    return_N = normal(30)
    for guess_N, expected in ((return_N, 1.0), (torch.full_like(return_N, 3.0), 0.0)):
        result = losses.explained_variance(guess_N, return_N)
        assert result.item() == pytest.approx(expected, abs=1e-9)


def test_the_controller_moves_by_the_relative_error_cut_to_a_fifth() -> None:
    def after(kl_nats: float) -> float:
        return losses.next_kl_coefficient(
            0.1, kl_nats, target_nats=6.0, episodes=512, horizon=10_000
        )

    assert after(6.0) == 0.1
    assert after(6.6) == pytest.approx(0.1 * (1 + 0.1 * 512 / 10_000))
    assert after(60.0) == after(8.0) == pytest.approx(0.1 * (1 + 0.2 * 512 / 10_000))
    assert after(0.0) == pytest.approx(0.1 * (1 - 0.2 * 512 / 10_000))


def test_the_learning_rate_warms_up_from_a_tenth_and_stays() -> None:
    shares = [losses.warm_up(iteration, 10) for iteration in (0, 5, 10, 11, 500)]
    assert shares == pytest.approx([0.1, 0.55, 1.0, 1.0, 1.0])


def test_the_docs_name_the_line_of_every_step_of_the_paper() -> None:
    table = (ROOT / "docs/ppo.md").read_text().split("| in `ppo.py` |")[1].split("\n\n")[0]
    rows = [row.split("|") for row in table.splitlines()[2:]]
    code = (ROOT / "stages/ppo/ppo.py").read_text()
    quotes = [quote for row in rows for quote in row[3].split("`")[1::2]]
    assert len(quotes) > 12
    assert [quote for quote in quotes if quote not in code] == []
