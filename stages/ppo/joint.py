"""When the reward model's score can be read off the reference's own pass.

    reference   ids -> transformer -> state -> unembedding -> log-probabilities
    reward                            state -> head -> score

That takes a reward model without a transformer of its own: a probe, trained on the very model that
PPO starts from. A set that changes nothing yet, such as a new LoRA's, is no hindrance; one that was
fine-tuned is, because the probe was trained without it. Both are asked rather than argued.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reward_models.model import RewardModel
from stages.ppo.reading import Layout, response_logits_and_states, unembedding

TOLERANCE = 1e-5  # of a hidden state, relative to the largest
_TOKENS = 16  # of the example
_HOW = (
    "expected a probe on the model that PPO starts from (reward_base: sft, sft_choice: loss, "
    "reward.adaptation: {family: probe}), or models.kind shared-critic"
)


def require_one_pass(reference: PreTrainedModel, reward: RewardModel, policy: str) -> None:
    """Raise ValueError unless the reference's last hidden states are what the reward's head reads.

    Call it before models are moved or divided.
    """
    if not reward.card.head_only:
        raise ValueError(
            f"models.kind is joint, but the reward model moved more than its head; {_HOW}"
        )
    if reward.card.pooling != "last":
        raise ValueError(
            f"models.kind is joint, but the reward model pools by {reward.card.pooling}; expected "
            "reward.adaptation.pooling last: a pass keeps the states of the response alone"
        )
    gap = _gap(reference, reward)
    if not gap <= TOLERANCE:
        raise ValueError(
            f"models.kind is joint, but the reward model reads {reward.card.base}, whose hidden "
            f"states are not those of {policy} (they differ by {gap:.1g}); {_HOW}"
        )


@torch.no_grad()
def _gap(reference: PreTrainedModel, reward: RewardModel) -> float:
    """How far the two are apart on an example, in the largest number; infinite for other shapes."""
    rows = reference.get_input_embeddings().get_parameter("weight").shape[0]
    ids_BL = torch.linspace(0, rows - 1, _TOKENS).long()[None]
    mask_BL, places_BL = torch.ones_like(ids_BL), torch.arange(_TOKENS)[None]
    whole = Layout(
        ids_BL, mask_BL.bool(), places_BL, _TOKENS, places_BL[0], places_BL[0], mask_BL.sum(-1)
    )
    _, read_LD = response_logits_and_states(reference, whole, unembedding(reference))
    own_LD: Tensor = reward.states(ids_BL, whole.mask, places_BL, places_BL)[0]
    if own_LD.shape != read_LD.shape:
        return float("inf")
    return float((own_LD - read_LD).abs().max() / own_LD.abs().max())
