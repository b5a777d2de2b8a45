"""Trials of the quicker forward passes: each is compared with the plain one on an example.

A model whose numbers differ, or that refuses, keeps the plain forward pass.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from peft import PeftModel
from torch import Tensor
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
from reward_models.weights.formats import rounding
from stages.adapters.cached_layers import CachedLayers
from stages.chunked_logprobs import returns_what_it_unembeds, tokens_at_once
from stages.forward_check import Forward as ForwardFn
from stages.forward_check import logits_of, padding_side
from stages.generation.generate import Sampled
from stages.ppo import losses
from stages.ppo.config import PPOConfig
from stages.ppo.forward import policy_logits, reference_and_scores, values
from stages.ppo.models import Models, unembedding
from stages.ppo.rollout import Episodes, lay_out
from stages.progress import Report, announce

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of a log-probability or score


def with_supported_layout(
    models: Models, prompts: Sequence[list[int]], config: PPOConfig, report: Report
) -> Models:
    """The models, with the layout that all of them support: packed, or padded on which side."""
    longest, response_tokens = max(prompts, key=len), config.sampling.max_new_tokens
    models = replace(
        models,
        pads_right=pads_right(models, len(longest) + response_tokens),
        tokens_at_once=chunk_of_logits(models),
    )
    if not config.packed:
        return models
    announce(report, "checking that the models can compute several episodes in one row")
    obstacle = obstacle_to_packing(models, longest, response_tokens, config.responses_per_prompt)
    if obstacle is not None:
        log.warning("every episode is computed in a padded row of its own: %s", obstacle)
    return replace(models, packed=obstacle is None)


def chunk_of_logits(models: Models) -> int | None:
    """The number of tokens whose logits are there at once; None where they must all be.

    So it is where logits are more than the unembedding's output.
    """
    policy = models.policy
    return tokens_at_once(policy) if returns_what_it_unembeds(policy, unembedding(policy)) else None


def pads_right(models: Models, longest: int) -> bool:
    """Return true where padding on the left would change the models' outputs.

    `longest` is the number of tokens of the longest text. Raises ValueError where padding changes
    that on either side.
    """
    sides = [padding_side(logits_of(models.policy), models.policy, longest)]
    for scorer in (models.critic, models.reward):
        if isinstance(scorer, RewardModel):
            backbone = transformer(scorer.backbone)
            sides.append(padding_side(_state_reader(scorer), backbone, longest))
    return "right" in sides


def obstacle_to_packing(
    models: Models, prompt: list[int], response_tokens: int, responses: int
) -> str | None:
    """The reason why the models cannot compute `prompt` with its responses in one row, or None.

    Without one, their attention takes packed rows from now on; else it is as it was. A recurrence,
    ALiBi, a sliding window, or attention of its own gives other numbers in a packed row or refuses.
    """
    backbones = _backbones(models)
    longest = len(prompt) + response_tokens
    apart, together = (
        _example(models, prompt, response_tokens, responses, sharing=sharing)
        for sharing in (1, responses)
    )
    before = _outputs(models, apart, packed=False)

    def change() -> str | None:
        for backbone in backbones:
            enable_packing(backbone)
        difference = _difference(models, before, _outputs(models, together, packed=True))
        windows = (shorter_window(backbone, longest) for backbone in backbones)
        return difference or next((window for window in windows if window is not None), None)

    return attention_mismatch(backbones, change)


def without_wrong_states(models: Models, prompt: list[int]) -> Models:
    """The models, without cached lower layers where skipping these changes the outputs.

    So it is with layers that take more than the output of the one below (shared keys, inputs of
    their own).
    """
    if models.lower.num_models == 0:
        return models
    plain = replace(models, lower=CachedLayers())
    episodes = _example(models, prompt, 3, 1, sharing=1)
    expected = _outputs(plain, episodes, packed=models.packed)
    try:
        _outputs(models, episodes, packed=models.packed)  # computes the states
        obstacle = _difference(models, expected, _outputs(models, episodes, packed=models.packed))
    except FORWARD_ERRORS as error:
        obstacle = f"the model refused ({first_line(error)[:80]})"
    models.lower.forget()
    if obstacle is None:
        return models
    log.warning("states of lower layers are not cached: %s", obstacle)
    return plain


def _state_reader(scorer: RewardModel) -> ForwardFn:
    def states(ids_BL: Tensor, mask_BL: Tensor, positions_BL: Tensor) -> Tensor:
        every_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device).expand_as(ids_BL)
        return scorer.states(ids_BL, mask_BL, positions_BL, every_BL)

    return states


def _backbones(models: Models) -> list[PreTrainedModel]:
    roles = (models.policy, models.reference, models.critic, models.reward)
    adapted = [role.backbone if isinstance(role, RewardModel) else role for role in roles]
    # A value head has none.
    return [transformer(x) for x in adapted if isinstance(x, PreTrainedModel | PeftModel)]


def _example(
    models: Models, prompt: list[int], response_tokens: int, responses: int, *, sharing: int
) -> Episodes:
    """One text as long as any of the run; the others are short, the last ones of a single token.

    The influence of a text may fade within a few tokens: a short one must follow.
    """
    lengths = (len(prompt), 1 + len(prompt) // 2, 1)
    prompts = [prompt[:length] for length in lengths for _ in range(responses)]
    words = prompt * (2 + (response_tokens + len(prompts)) // len(prompt))
    counts = [response_tokens, *(min(response_tokens, 1 + k % 3) for k in range(len(prompts) - 1))]
    sampled = [Sampled(words[k : k + count], ended=False) for k, count in enumerate(counts)]
    return Episodes.build(prompts, sampled, models.policy.device, sharing=sharing)


@torch.no_grad()
def _outputs(models: Models, episodes: Episodes, *, packed: bool) -> tuple[Tensor, ...]:
    """Log-probabilities and values of the response tokens, and scores."""
    layout = lay_out(episodes, packed=packed, right=models.pads_right)
    token_N = episodes.response_tokens()[episodes.response_BT]
    logits_NV, state_ND = policy_logits(models, layout, models.policy)
    value_N = values(models, layout, state_ND)
    logprob_N = losses.chosen_logprobs(logits_NV, token_N, 1.0)
    del logits_NV
    score_E = reference_and_scores(models, layout)[1]
    return (logprob_N, value_N) if score_E is None else (logprob_N, value_N, score_E)


def _difference(models: Models, expected: Sequence[Tensor], actual: Sequence[Tensor]) -> str | None:
    with models.autocast():
        roles = (models.policy, models.reference, models.critic, models.reward)
        share = max(rounding(role, TOLERANCE) for role in roles)
    worst = max(
        float((a - b).abs().max()) / (1.0 if share == TOLERANCE else max(1.0, float(a.abs().max())))
        for a, b in zip(expected, actual, strict=True)
    )
    return None if worst <= share else f"its output differs by {worst:.1e}"
