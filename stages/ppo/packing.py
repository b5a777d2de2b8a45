"""The ways in which PPO's models can run a batch: padding, packed rows and states of lower layers.

Each way is tried on an example, and a model that says something else that way is as it was before.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from reward_models.backbone import transformer
from reward_models.model import RewardModel
from reward_models.model_files import first_line
from reward_models.packed_attention import (
    FORWARD_ERRORS,
    attention_mismatch,
    enable_packing,
    shorter_window,
)
from stages.forward_check import Forward, padding_side
from stages.generation.generate import Sampled
from stages.ppo import objective
from stages.ppo.episodes import Episodes
from stages.ppo.lower_states import LowerStates
from stages.ppo.models import Models
from stages.ppo.reading import lay_out
from stages.ppo.shared_passes import policy_and_values, reference_and_scores

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of a log-probability or score

Numbers = tuple[Tensor, Tensor, Tensor]  # logprob_N, value_N, score_E


def pads_right(models: Models, longest: int) -> bool:
    """Return true where padding on the left would change the models' outputs.

    `longest` is the number of tokens of the longest text. Raises ValueError where padding changes
    that on either side.
    """
    sides = [padding_side(policy_reader(models.policy), models.policy, longest)]
    for scorer in (models.critic, models.reward):
        if isinstance(scorer, RewardModel):
            trunk = transformer(scorer.backbone)
            sides.append(padding_side(_state_reader(scorer), trunk, longest))
    return "right" in sides


def obstacle_to_packing(
    models: Models, prompt: list[int], response_tokens: int, responses: int
) -> str | None:
    """Why the models cannot read `prompt` with its responses beside others; None where they can.

    Where they can, their attention can be told from now on what lies in a row; else it is what it
    was. A recurrence, ALiBi, a sliding window, or attention of its own reads a packed row
    differently or refuses it.
    """
    trunks = _trunks(models)
    longest = len(prompt) + response_tokens
    apart, together = (
        _example(models, prompt, response_tokens, responses, sharing=sharing)
        for sharing in (1, responses)
    )
    before = _read(models, apart, packed=False)

    def change() -> str | None:
        for trunk in trunks:
            enable_packing(trunk)
        difference = _difference(before, _read(models, together, packed=True))
        windows = (shorter_window(trunk, longest) for trunk in trunks)
        return difference or next((window for window in windows if window is not None), None)

    return attention_mismatch(trunks, change)


def without_wrong_states(models: Models, prompt: list[int]) -> Models:
    """The models, without states of lower layers where passes that leave those out differ.

    Layers that read more than what the one below them says (shared keys, inputs of their own) are
    found so.
    """
    if models.lower.roles == 0:
        return models
    plain = replace(models, lower=LowerStates())
    episodes = _example(models, prompt, 3, 1, sharing=1)
    expected = _read(plain, episodes, packed=models.packed)
    try:
        _read(models, episodes, packed=models.packed)  # computes the states
        obstacle = _difference(expected, _read(models, episodes, packed=models.packed))
    except FORWARD_ERRORS as error:
        obstacle = f"the model refused ({first_line(error)[:80]})"
    models.lower.forget()
    if obstacle is None:
        return models
    log.warning("states of lower layers are not kept: %s", obstacle)
    return plain


def _trunks(models: Models) -> list[PreTrainedModel]:
    roles = (models.policy, models.reference, models.critic, models.reward)
    carriers: list[nn.Module] = [
        role.backbone if isinstance(role, RewardModel) else role for role in roles
    ]
    return [  # a value head has none
        transformer(carrier)
        for carrier in carriers
        if isinstance(carrier, PreTrainedModel | PeftModel)
    ]


def _example(
    models: Models, prompt: list[int], response_tokens: int, responses: int, *, sharing: int
) -> Episodes:
    """One text as long as any of the run; the others are short, the last ones of a single token.

    What a text leaves behind may fade within a few tokens: a short one must follow.
    """
    lengths = (len(prompt), 1 + len(prompt) // 2, 1)
    prompts = [prompt[:length] for length in lengths for _ in range(responses)]
    words = prompt * (2 + (response_tokens + len(prompts)) // len(prompt))
    counts = [response_tokens, *(min(response_tokens, 1 + k % 3) for k in range(len(prompts) - 1))]
    said = [Sampled(words[k : k + count], ended=False) for k, count in enumerate(counts)]
    return Episodes.build(prompts, said, models.policy.device, sharing=sharing)


def _read(models: Models, episodes: Episodes, *, packed: bool) -> Numbers:
    """Log-probabilities and values of the response tokens, and scores."""
    layout = lay_out(episodes, packed=packed, right=models.pads_right)
    token_N = episodes.response_tokens()[episodes.response_BT]
    with torch.no_grad():
        logits_NV, value_N = policy_and_values(models, layout)
        logprob_N = objective.chosen_logprobs(logits_NV, token_N, 1.0)
        del logits_NV
        return logprob_N, value_N, reference_and_scores(models, layout)[1]


def _difference(expected: Sequence[Tensor], read: Sequence[Tensor]) -> str | None:
    worst = max(float((a - b).abs().max()) for a, b in zip(expected, read, strict=True))
    return None if worst <= TOLERANCE else f"what it says differs by {worst:.1e}"


def policy_reader(policy: PreTrainedModel) -> Forward:
    """The logits of a causal language model, for `padding_side`."""

    def read(ids_BL: Tensor, mask_BL: Tensor, positions_BL: Tensor) -> Tensor:
        logits_BLV: Tensor = policy(
            input_ids=ids_BL,
            attention_mask=mask_BL.long(),
            position_ids=positions_BL,
            use_cache=False,
        ).logits
        return logits_BLV

    return read


def _state_reader(scorer: RewardModel) -> Forward:
    def read(ids_BL: Tensor, mask_BL: Tensor, positions_BL: Tensor) -> Tensor:
        every_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device).expand_as(ids_BL)
        return scorer.states(ids_BL, mask_BL, positions_BL, every_BL)

    return read
