"""The formulas of stage three: pure functions of tensors and plain numbers.

    reward_t  = -beta * (log pi(a_t) - log ref(a_t)),  plus the score at the last token
    advantage = GAE(gamma, lambda) of reward and value, terminal value 0
    loss      = -mean over tokens of min(ratio * A, clip(ratio) * A)
                + 1/2 mean over tokens of max((v - R)^2, (clip(v) - R)^2)
                - gamma * mean log-likelihood of pretraining text
                                                         (Ouyang et al. 2022, equation 2 and C.4)

Every loss is a sum over the given tokens divided by a count that the caller passes, because the
tokens at hand may be one micro-batch on one of several ranks.

Dimension key:  B episodes,  T response tokens (any padding side, one contiguous run a row),
N response tokens of a batch in one list,  L tokens of a pretraining example,  V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def chosen_logprobs(logits_NV: Tensor, token_N: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) at the chosen tokens, always in float32."""
    scaled_NV = _scaled(logits_NV, temperature)
    chosen_N = scaled_NV.gather(-1, token_N[:, None]).squeeze(-1)
    return chosen_N - scaled_NV.logsumexp(-1)


def entropy(logits_NV: Tensor, temperature: float) -> Tensor:
    """Entropy in nats of softmax(logits / temperature), token by token."""
    logprob_NV = torch.log_softmax(_scaled(logits_NV, temperature), -1)
    return -(logprob_NV.exp() * logprob_NV).sum(-1)


def kl_k1(logprob: Tensor, reference: Tensor) -> Tensor:
    """log pi - log ref of sampled tokens: unbiased for KL(pi || ref), may be negative."""
    return logprob - reference


def kl_k3(logprob: Tensor, reference: Tensor) -> Tensor:
    """ref/pi - 1 - log(ref/pi): unbiased for KL(pi || ref) and never negative."""
    log_ratio = reference - logprob
    return torch.expm1(log_ratio) - log_ratio


def final_scores(
    score_B: Tensor, ended_B: Tensor, *, clip: float | None, missing_eos: float | None
) -> Tensor:
    """The scores clamped to [-clip, clip]; a response without EOS gets `missing_eos` instead."""
    if clip is not None:
        score_B = score_B.clamp(-clip, clip)
    if missing_eos is not None:
        score_B = torch.where(ended_B, score_B, torch.full_like(score_B, missing_eos))
    return score_B


def shaped_rewards(
    score_B: Tensor,
    logprob_BT: Tensor,
    reference_BT: Tensor,
    mask_BT: Tensor,
    kl_coefficient: float,
) -> Tensor:
    """The reward of every token: -beta * k1, plus the score at the last token of the response."""
    reward_BT = -kl_coefficient * kl_k1(logprob_BT, reference_BT) * mask_BT
    last_BT = mask_BT & ~_next(mask_BT)
    return reward_BT + score_B[:, None] * last_BT


def advantages(
    reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16).

    The value after the end is 0.
    """
    next_value_BT = _next(value_BT * mask_BT)
    delta_BT = (reward_BT + gamma * next_value_BT - value_BT) * mask_BT
    advantage_BT = torch.zeros_like(delta_BT)
    running_B = torch.zeros_like(delta_BT[:, 0])
    for t in reversed(range(delta_BT.shape[1])):
        running_B = (delta_BT[:, t] + gamma * lam * running_B) * mask_BT[:, t]
        advantage_BT[:, t] = running_B
    return advantage_BT


def mean_and_variance(x_N: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (divided by the count), in float64."""
    x_N = x_N.double()
    mean = x_N.sum() / len(x_N)
    return mean, (x_N.square().sum() / len(x_N) - mean.square()).clamp(min=0.0)


def whiten(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the mask; 0 outside it."""
    mean, variance = mean_and_variance(x_BT[mask_BT])
    scaled_BT = (x_BT.double() - mean) * torch.rsqrt(variance + 1e-8)
    return scaled_BT.to(x_BT.dtype) * mask_BT


def importance_weights(old_BT: Tensor, sampler_BT: Tensor, *, cap: float) -> Tensor:
    """min(pi / mu, cap) of tokens that mu sampled and pi is trained on (Yao et al. 2025).

    The advantages are multiplied by it, and so every token's clipped surrogate: without the cap its
    expectation under mu is that under pi. "Your efficient RL framework secretly brings you
    off-policy RL training": truncated importance sampling.
    """
    return (old_BT - sampler_BT).exp().clamp(max=cap)


def policy_loss(
    logprob_N: Tensor, old_N: Tensor, advantage_N: Tensor, *, clip: float, count: float
) -> Tensor:
    """The clipped surrogate (Schulman et al. 2017, equation 7), its sum over `count`."""
    ratio_N = (logprob_N - old_N).exp()
    clipped_N = ratio_N.clamp(1.0 - clip, 1.0 + clip)
    return -torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N).sum() / count


def policy_clipped(logprob_N: Tensor, old_N: Tensor, advantage_N: Tensor, clip: float) -> Tensor:
    """True at tokens that the clip of `policy_loss` leaves without gradient."""
    ratio_N = (logprob_N - old_N).exp()
    above_N = (ratio_N > 1.0 + clip) & (advantage_N > 0)
    return above_N | ((ratio_N < 1.0 - clip) & (advantage_N < 0))


def value_loss(
    value_N: Tensor, old_N: Tensor, return_N: Tensor, *, clip: float | None, count: float
) -> Tensor:
    """Half the squared error, the larger of plain and clipped where `clip` is set, over `count`."""
    error_N = (value_N - return_N).square()
    if clip is not None:
        near_N = torch.clamp(value_N, old_N - clip, old_N + clip)
        error_N = torch.maximum(error_N, (near_N - return_N).square())
    return 0.5 * error_N.sum() / count


def value_clipped(value_N: Tensor, old_N: Tensor, return_N: Tensor, clip: float | None) -> Tensor:
    """True at tokens where the clipped error of `value_loss` is the larger one."""
    if clip is None:
        return torch.zeros_like(value_N, dtype=torch.bool)
    near_N = torch.clamp(value_N, old_N - clip, old_N + clip)
    return (near_N - return_N).square() > (value_N - return_N).square()


def token_nll(logits_BLV: Tensor, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Summed negative log-likelihood in nats of every token but each example's first, float32."""
    label_BL = ids_BL.masked_fill(~mask_BL, -100)
    return cross_entropy(
        logits_BLV[:, :-1].flatten(0, 1).float(), label_BL[:, 1:].flatten(), reduction="sum"
    )


def explained_variance(value_N: Tensor, return_N: Tensor) -> Tensor:
    """1 - Var(return - value) / Var(return): 1 is perfect, 0 no better than a constant."""
    _, unexplained = mean_and_variance(return_N - value_N)
    _, variance = mean_and_variance(return_N)
    return 1.0 - unexplained / variance.clamp(min=1e-12)


def next_kl_coefficient(
    coefficient: float, kl_nats: float, *, target_nats: float, episodes: int, horizon: float
) -> float:
    """Proportional control of the KL, the relative error clipped to 20 %.

    Ziegler et al. 2019, section 2.2.
    """
    error = min(max(kl_nats / target_nats - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error * episodes / horizon)


def warm_up(iteration: int, warmup_iterations: int) -> float:
    """Share of the peak rate: a tenth at iteration 0, all of it from `warmup_iterations` on."""
    return 0.1 + 0.9 * min(1.0, iteration / warmup_iterations)


def _scaled(logits_NV: Tensor, temperature: float) -> Tensor:
    """In float32; the logits themselves where that changes nothing: a copy is V wide."""
    wide_NV = logits_NV.float()
    return wide_NV if temperature == 1.0 else wide_NV / temperature


def _next(x_BT: Tensor) -> Tensor:
    """Shifted one token to the left; zero (false) enters on the right."""
    return torch.cat([x_BT[:, 1:], torch.zeros_like(x_BT[:, :1])], dim=1)
