"""Whether models can read many episodes in one row: they are asked, on an example."""

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from reward_models.model import RewardModel
from reward_models.one_line import first_line
from reward_models.pieces import let_read_pieces
from reward_models.trunk import transformer
from stages.generation import Sampled
from stages.ppo import objective
from stages.ppo.episodes import Episodes
from stages.ppo.models import Models
from stages.ppo.reading import lay_out
from stages.ppo.shared_passes import policy_and_values, reference_and_scores

TOLERANCE = 1e-4  # of a log-probability or score


def obstacle_to_packing(
    models: Models, prompt: list[int], response_tokens: int, responses: int
) -> str | None:
    """Why the models cannot read `prompt` with its responses beside others; None where they can.

    From now on their attention can be told what lies in a row. A recurrence, ALiBi, a sliding
    window, or attention of its own reads a packed row differently or refuses it. One text of the
    example is as long as any of the run; the others are short.
    """
    prompts = [prompt] * responses + [prompt[: 1 + len(prompt) // 2]] * responses
    words = prompt * (2 + (response_tokens + len(prompts)) // len(prompt))
    counts = [response_tokens, *(min(response_tokens, 1 + k % 3) for k in range(len(prompts) - 1))]
    said = [Sampled(words[k : k + count], ended=False) for k, count in enumerate(counts)]
    read = []
    for packed in (False, True):
        sharing = responses if packed else 1
        episodes = Episodes.build(prompts, said, models.policy.device, sharing=sharing)
        try:
            if packed:
                _let_read_pieces(models)
            read.append(_read(models, episodes, packed=packed))
        except (ValueError, RuntimeError, TypeError, IndexError, AttributeError) as error:
            if not packed:
                raise
            return f"the model refused ({first_line(error)[:80]})"
    worst = max(float((a - b).abs().max()) for a, b in zip(*read, strict=True))
    return None if worst <= TOLERANCE else f"what it says differs by {worst:.1e}"


def _let_read_pieces(models: Models) -> None:
    for role in (models.policy, models.reference, models.critic, models.reward):
        carrier: nn.Module = role.carrier if isinstance(role, RewardModel) else role
        if isinstance(carrier, PreTrainedModel | PeftModel):  # a value head has none
            let_read_pieces(transformer(carrier))


def _read(models: Models, episodes: Episodes, *, packed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities and values of the response tokens, and scores."""
    layout = lay_out(episodes, packed=packed)
    token_N = episodes.response_tokens()[episodes.response_BT]
    with torch.no_grad():
        logits_NV, value_N = policy_and_values(models, layout)
        logprob_N = objective.chosen_logprobs(logits_NV, token_N, 1.0)
        del logits_NV
        return logprob_N, value_N, reference_and_scores(models, layout)[1]
