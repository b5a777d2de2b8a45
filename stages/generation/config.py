"""The settings of sampling."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt

# One place to import every stage's settings from.
from stages.config import Config


class SamplingConfig(Config):
    """How responses are drawn. The defaults sample exactly the model's distribution."""

    temperature: NonNegativeFloat = 1.0  # 0 is greedy
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_new_tokens: PositiveInt = 64
    batch_size: PositiveInt = 64
    compiled: bool = False  # the decoding step, by torch.compile: for a GPU; see docs/ppo.md
