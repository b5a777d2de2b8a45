"""Whether a model may read a prompt once for several responses: it is asked, on one example."""

import torch
from torch import Tensor

from stages.generation import Sampled
from stages.ppo.episodes import Episodes
from stages.ppo.models import Models
from stages.ppo.reading import lay_out
from stages.ppo.shared_passes import policy_and_values, reference_and_scores

TOLERANCE = 1e-4  # of a log-probability or score


def obstacle_to_sharing(
    models: Models, prompt: list[int], response_tokens: int, responses: int
) -> str | None:
    """Why the models cannot read `prompt` once for so many responses; None where they can.

    A recurrence, ALiBi or a sliding window reads a tree differently or refuses it.
    """
    words = (prompt * (1 + (response_tokens + responses) // len(prompt)))[
        : response_tokens + responses
    ]
    said = [Sampled(words[k : k + response_tokens], ended=False) for k in range(responses)]
    read = []
    for sharing in (1, responses):
        episodes = Episodes.build([prompt] * responses, said, models.policy.device, sharing=sharing)
        try:
            read.append(_read(models, episodes))
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            if sharing == 1:
                raise
            return f"the model refused ({str(error).splitlines()[0][:80]})"
    worst = max(float((a - b).abs().max()) for a, b in zip(*read, strict=True))
    return None if worst <= TOLERANCE else f"what it says differs by {worst:.1e}"


def _read(models: Models, episodes: Episodes) -> tuple[Tensor, Tensor, Tensor]:
    layout = lay_out(episodes)
    with torch.no_grad():
        logits_NV, value_N = policy_and_values(models, layout)
        return logits_NV.float().log_softmax(-1), value_N, reference_and_scores(models, layout)[1]
