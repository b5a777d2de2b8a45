"""Two models that read the same episodes: in a pass each, or one as a head on the other's pass.

    separate        policy | critic | reference | reward model
    shared-critic   policy + value head | reference | reward model
    joint           policy + value head | reference + the reward model's head

Dimension key:  N response tokens,  E episodes,  V vocabulary,  D hidden size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.ppo.config import Joint, Separate, SharedCritic
from stages.ppo.models import Models
from stages.ppo.reading import (
    Layout,
    response_logits,
    response_logits_and_states,
    response_scores,
    response_values,
    unembedding,
)
from stages.ppo.value_head import ValueHead


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass of the policy over some episodes, with its graph, and of a critic of its own.

    `rows` are the episodes' places in the rollout; `state_ND` is there for a value head; `value_N`
    where the critic read them already.
    """

    rows: Tensor
    layout: Layout
    logprob_N: Tensor
    state_ND: Tensor | None
    value_N: Tensor | None


def policy_logits(
    models: Models, layout: Layout, policy: nn.Module
) -> tuple[Tensor, Tensor | None]:
    """logits_NV of the response tokens, and state_ND before them where a value head reads those.

    `policy` is the models' own or an engine around it.
    """
    with models.lower.reading(models.policy, layout):
        if not isinstance(models.critic, ValueHead):
            return response_logits(policy, layout), None
        read_by = unembedding(models.policy)
        logits_NV, state_SD = response_logits_and_states(policy, layout, read_by)
        return logits_NV, state_SD[layout.place_N]


def critic_values(models: Models, layout: Layout, critic: nn.Module) -> Tensor:
    """value_N before the response tokens, by a critic of its own; `critic`: it or its engine."""
    with models.lower.reading(models.critic, layout):
        return response_values(critic, layout)


def values(models: Models, layout: Layout, state_ND: Tensor | None) -> Tensor:
    """value_N before the response tokens; `state_ND` is what `policy_logits` gave.

    A value head gets no gradient to the policy this way.
    """
    if state_ND is None:
        return critic_values(models, layout, models.critic)
    value_N: Tensor = models.critic(state_ND.detach())
    return value_N


def policy_and_values(models: Models, layout: Layout) -> tuple[Tensor, Tensor]:
    """logits_NV of the response tokens, and value_N before them."""
    logits_NV, state_ND = policy_logits(models, layout, models.policy)
    if state_ND is None:
        return logits_NV, critic_values(models, layout, models.critic)
    return logits_NV, models.critic(state_ND)


def reference_and_scores(models: Models, layout: Layout) -> tuple[Tensor, Tensor]:
    """logits_NV of the reference, and the reward model's score_E of each response."""
    with models.lower.reading(models.reference, layout):
        if models.joint:
            read_by = unembedding(models.reference)
            logits_NV, state_SD = response_logits_and_states(models.reference, layout, read_by)
            return logits_NV, models.reward.scores(state_SD[layout.place_E])
        logits_NV = response_logits(models.reference, layout)
    with models.lower.reading(models.reward, layout):
        return logits_NV, response_scores(models.reward, layout)


def value_coefficient(sharing: Separate | SharedCritic | Joint) -> float:
    """How strongly the value loss moves the policy; 0 where the critic is a model of its own."""
    return 0.0 if isinstance(sharing, Separate) else sharing.value_coefficient


def value_gradient(loss: Tensor, state_ND: Tensor, leaf_ND: Tensor, coefficient: float) -> Tensor:
    """A scalar whose gradient in `state_ND` is `coefficient` times the loss's in `leaf_ND`.

    `leaf_ND` holds the states without their graph and the loss keeps its own, so that head and
    policy may be two networks, each with its own backward pass, wherever their weights are.
    """
    (slope_ND,) = torch.autograd.grad(loss, leaf_ND)
    return coefficient * (state_ND * slope_ND).sum()
