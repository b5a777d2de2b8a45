"""Two models that read the same episodes: in a pass each, or one as a head on the other's pass.

    separate        policy | critic | reference | reward model
    shared-critic   policy + value head | reference | reward model
    joint           policy + value head | reference + the reward model's head

Dimension key:  N response tokens,  E episodes,  V vocabulary,  D hidden size.
"""

import torch
from torch import Tensor

from stages.config import Joint, Separate, SharedCritic
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


def policy_and_values(models: Models, layout: Layout) -> tuple[Tensor, Tensor]:
    """logits_NV of the response tokens, and value_N before them."""
    if not isinstance(models.critic, ValueHead):
        return response_logits(models.policy, layout), response_values(models.critic, layout)
    read_by = unembedding(models.policy)
    logits_NV, state_SD = response_logits_and_states(models.policy, layout, read_by)
    return logits_NV, models.critic(state_SD[layout.place_N])


def reference_and_scores(models: Models, layout: Layout) -> tuple[Tensor, Tensor]:
    """logits_NV of the reference, and the reward model's score_E of each response."""
    if not models.joint:
        return response_logits(models.reference, layout), response_scores(models.reward, layout)
    read_by = unembedding(models.reference)
    logits_NV, state_SD = response_logits_and_states(models.reference, layout, read_by)
    return logits_NV, models.reward.scores(state_SD[layout.place_E])


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
