"""The settings of many users' adapters."""

from typing import Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from stages.adapters.config import Adaptation, Full, LoRA
from stages.config import Config
from stages.precision_config import Precision


class UserAdaptersConfig(Config):
    """Adapters of many users on one frozen base, trained together."""

    adaptation: Adaptation = LoRA(rank=8, alpha=16.0)
    precision: Precision = Precision()
    steps: PositiveInt = 60  # each user's, over its own demonstrations again and again
    examples_per_step: PositiveInt = 4  # of each user
    users_per_batch: PositiveInt = 16
    learning_rate: PositiveFloat = 1e-3  # falls along a cosine to a tenth
    activation_checkpointing: bool = False  # layers keep their inputs alone: slower, less memory
    max_tokens: PositiveInt = 512  # prompt and response; longer demonstrations are left out

    @model_validator(mode="after")
    def an_adapter_is_small_and_without_dropout(self) -> Self:
        """Refuse what cannot be stored once a user."""
        if isinstance(self.adaptation, Full):
            raise ValueError("adaptation.family is full; users' adapters need a small family")
        if dropout := self.adaptation.adapter_dropout:
            raise ValueError(f"adaptation.dropout ({dropout}) must be 0 in users' adapters")
        return self
