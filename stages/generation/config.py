"""The settings of sampling."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt

from stages.config import Config


class SamplingConfig(Config):
    """Settings of sampling; the defaults sample exactly the model's distribution."""

    temperature: NonNegativeFloat = 1.0  # 0 is greedy
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_new_tokens: PositiveInt = 64
    batch_size: PositiveInt = 64
    compiled: bool = False  # the decoding step, by torch.compile: for a GPU; see docs/ppo.md
