"""The settings of the reward model's training."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from stages.adapters.config import Adaptation, Full
from stages.config import Config, Fraction, OptimizerName
from stages.precision_config import Precision, require_trainable


class RewardConfig(Config):
    """Stage two: a reward model on rankings (section 3.5, appendix C.2)."""

    epochs: PositiveInt = 1
    learning_rate: PositiveFloat = 9e-6
    prompts_per_batch: PositiveInt = 64
    micro_prompts: PositiveInt | Literal["auto"] = "auto"  # a rank's in memory; as many as fit
    batch_element: Literal["prompt", "ranking"] = "prompt"  # see reward_models.ranking_loss
    learn_from_skips: list[
        str
    ] = []  # reasons; responses rated before the skip are ordered by rating
    scale: Literal["none", "demonstrations", "held_out"] = "none"  # whose scores get variance 1
    weight_decay: NonNegativeFloat = 0.0  # the paper does not say
    max_gradient_norm: PositiveFloat | None = 1.0  # the paper does not say
    held_out: Fraction = 0.1  # share of prompts set apart for pair accuracy
    annotator_folds: Annotated[int, Field(ge=2)] | None = None  # groups left out in turn (4.1)
    prompt_folds: Annotated[int, Field(ge=2)] | None = None  # every prompt is held out once
    max_tokens: PositiveInt = 2048  # of a prompt with its response; longer ones are left out
    checkpoint_every: PositiveInt = 50  # steps
    optimizer: OptimizerName = "adamw"  # moments in 32 bits, in 8, or in 8 and paged to the host
    activation_checkpointing: bool = False  # layers keep their inputs alone: slower, less memory
    attn_implementation: str | None = None  # sdpa, eager, flash_attention_2; null: as loaded
    adaptation: Adaptation = Full()
    precision: Precision = Precision()
    trainer: dict[str, object] = {}

    @model_validator(mode="after")
    def what_scales_is_held_out(self) -> Self:
        """Refuse to scale by held-out scores where nothing is held out."""
        if self.scale == "held_out" and self.held_out == 0.0:
            raise ValueError("scale is 'held_out' but held_out is 0.0; expected a share above 0")
        return self

    @model_validator(mode="after")
    def micro_batches_fill_a_batch(self) -> Self:
        """Check that the batch is a whole number of micro-batches."""
        if self.micro_prompts != "auto" and self.prompts_per_batch % self.micro_prompts:
            raise ValueError(
                f"micro_prompts ({self.micro_prompts}) must divide "
                f"prompts_per_batch ({self.prompts_per_batch})"
            )
        return self

    @model_validator(mode="after")
    def what_is_trained_is_not_quantised(self) -> Self:
        """Refuse full fine-tuning of quantised weights."""
        require_trainable(self.precision, self.adaptation.family)
        return self
