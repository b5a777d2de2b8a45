"""Four ragged episodes with made-up log-probabilities, values and advantages."""

import torch
from torch import Tensor

from stages.generation.generate import Sampled
from stages.ppo.rollout import Episodes, Experience

PROMPT_TOKENS, RESPONSE_TOKENS = (1, 9, 4, 12), (8, 1, 3, 6)


def frozen_batch() -> tuple[list[list[int]], list[list[int]], Experience]:
    """Four ragged episodes whose old log-probabilities, values and advantages are made up."""
    generator = torch.Generator().manual_seed(0)

    def words(count: int) -> list[int]:
        return torch.randint(0, 25, (count,), generator=generator).tolist()

    prompts, responses = [words(n) for n in PROMPT_TOKENS], [words(n) for n in RESPONSE_TOKENS]
    sampled = [Sampled(ids, ended=True) for ids in responses]
    episodes = Episodes.build(prompts, sampled, torch.device("cpu"))
    mask_BT = episodes.response_BT

    def made_up(mean: float) -> Tensor:
        return (torch.randn(mask_BT.shape, generator=generator) * 0.4 + mean) * mask_BT

    data = Experience(episodes, made_up(-3.2), made_up(0.0), made_up(0.0), made_up(0.3))
    return prompts, responses, data
