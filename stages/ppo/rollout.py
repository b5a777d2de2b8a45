"""A rollout: responses to a batch of prompts, scored by the reward model and read by all models."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Self

import torch
from torch import Tensor

from stages.data.template import end_id
from stages.generation.config import SamplingConfig
from stages.generation.generate import generate_responses
from stages.ppo import objective
from stages.ppo.config import PPOConfig
from stages.ppo.episodes import Episodes, by_length
from stages.ppo.models import Models
from stages.ppo.reading import lay_out
from stages.ppo.shared_passes import Pass, policy_logits, reference_and_scores, values


@dataclass(frozen=True, slots=True)
class Rollout:
    """Episodes and what the models say of them before the update. `score_B` is before any rule.

    `old_BT` are the policy's log-probabilities from the path that training uses; `sampler_BT` the
    sampler's own where it is another program, else 0; `value_BT` the critic's values before each
    token. All are 0 outside the response. `passes` are those of policy and critic that said so,
    with their graphs, where those are kept for the first minibatch.
    """

    episodes: Episodes
    score_B: Tensor
    old_BT: Tensor
    reference_BT: Tensor
    value_BT: Tensor
    entropy_BT: Tensor
    sampler_BT: Tensor
    passes: tuple[Pass, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True, slots=True)
class Experience:
    """What the update reads: old log-probabilities and values, advantages and returns.

    `passes` are a `Rollout`'s.
    """

    episodes: Episodes
    old_BT: Tensor
    value_BT: Tensor
    advantage_BT: Tensor
    return_BT: Tensor
    passes: tuple[Pass, ...] = field(default=(), kw_only=True)

    def take(self, rows: Tensor) -> Self:
        """Some of the episodes, without the columns that none of them uses."""
        episodes = self.episodes.take(rows)
        longest = episodes.response_BT.shape[1]
        read = (self.old_BT, self.value_BT, self.advantage_BT, self.return_BT)
        return type(self)(episodes, *(x_BT[rows, -longest:] for x_BT in read))


def roll_out(
    models: Models,
    prompts: Sequence[list[int]],
    sampling: SamplingConfig,
    generator: torch.Generator,
    *,
    rows: Sequence[int] | None = None,
    sharing: int = 1,
) -> Episodes:
    """One response to each prompt, or to those at `rows`, from the policy as it is.

    `sharing` neighbours have one prompt.
    """
    rows = range(len(prompts)) if rows is None else rows
    responses = generate_responses(
        models.policy, models.tokenizer, prompts, sampling, generator=generator, rows=rows
    )
    asked = [prompts[row] for row in rows]
    return Episodes.build(asked, responses, models.policy.device, sharing=sharing)


def read_episodes(
    models: Models,
    episodes: Episodes,
    *,
    temperature: float,
    batch_size: int | None,
    minibatches: Sequence[Tensor] | None = None,
    keep: bool = False,
) -> Rollout:
    """Score the episodes and read them with all four models, in batches `by_length`.

    `minibatches` are the rows in which an update will read them; None: all at once. Without
    gradients; with `keep`, policy's and critic's passes keep their graphs. The reward model reads
    every response that ended with the end of turn it was trained with.
    """
    read = Rollout(
        episodes,
        torch.zeros(len(episodes.ended_B), device=episodes.ids_BL.device),
        *(torch.zeros_like(episodes.response_BT, dtype=torch.float32) for _ in range(5)),
    )
    if minibatches is None:
        minibatches = [torch.arange(len(episodes.ended_B), device=episodes.ids_BL.device)]
    parts = (by_length(episodes, rows, batch_size) for rows in minibatches)
    passes, end = [], end_id(models.tokenizer)
    with torch.no_grad():
        for rows in chain.from_iterable(parts):
            batch = episodes.take(rows)
            token_N = batch.response_tokens()[batch.response_BT]
            ended = batch.ended_with(end)  # for the scores alone
            layout = lay_out(ended, packed=models.packed, right=models.pads_right)
            with torch.set_grad_enabled(keep):
                logits_NV, state_ND = policy_logits(models, layout, models.policy)
                old_N = objective.chosen_logprobs(logits_NV, token_N, temperature)
                value_N = values(models, layout, state_ND)
            if keep:
                own_N = value_N if state_ND is None else None
                passes.append(Pass(rows, layout, old_N, state_ND, own_N))
            entropy_N = objective.entropy(logits_NV, temperature)
            logits_NV, score_E = reference_and_scores(models, layout)
            reference_N = objective.chosen_logprobs(logits_NV, token_N, temperature)
            _place(read.old_BT, rows, batch, old_N)
            _place(read.entropy_BT, rows, batch, entropy_N)
            _place(read.reference_BT, rows, batch, reference_N)
            _place(read.value_BT, rows, batch, value_N)
            read.score_B[rows] = score_E
    return replace(read, passes=tuple(passes))


def experience(
    rollout: Rollout, config: PPOConfig, kl_coefficient: float
) -> tuple[Experience, Tensor]:
    """Advantages and returns, and the rewards they come from."""
    mask_BT = rollout.episodes.response_BT
    score_B = objective.final_scores(
        rollout.score_B,
        rollout.episodes.ended_B,
        clip=config.score_clip,
        missing_eos=config.missing_eos_score,
    )
    reward_BT = objective.shaped_rewards(
        score_B, rollout.old_BT, rollout.reference_BT, mask_BT, kl_coefficient
    )
    advantage_BT = objective.advantages(
        reward_BT, rollout.value_BT, mask_BT, gamma=config.gamma, lam=config.lam
    )
    return_BT = advantage_BT + rollout.value_BT
    if config.whiten_advantages:
        moments_3 = objective.moments(advantage_BT[mask_BT])
        advantage_BT = objective.standardise(advantage_BT, mask_BT, moments_3)
    read = (rollout.old_BT, rollout.value_BT, advantage_BT, return_BT)
    return Experience(rollout.episodes, *read, passes=rollout.passes), reward_BT


def _place(target_BT: Tensor, rows: Tensor, batch: Episodes, x_N: Tensor) -> None:
    """Write a batch's response tokens into the rollout's right-aligned table."""
    x_BT = torch.zeros_like(batch.response_BT, dtype=target_BT.dtype)
    x_BT[batch.response_BT] = x_N.to(target_BT.dtype)
    target_BT[rows, -x_BT.shape[1] :] = x_BT
