"""The settings of supervised fine-tuning."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from stages.adapters.config import Adaptation, Full
from stages.config import Config, Fraction, OptimizerName
from stages.generation.config import SamplingConfig
from stages.precision_config import Precision, require_trainable


class SupervisedMix(Config):
    """Pretraining text among the demonstrations: the model PPO starts from (appendix C.3)."""

    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1  # of the examples
    tokens_per_example: PositiveInt = 256  # the paper does not say
    pack: bool = True  # documents joined and cut into equal examples; false: one document each


class SFTConfig(Config):
    """Stage one: fine-tuning on demonstrations (Ouyang et al. 2022, appendix C.1)."""

    epochs: PositiveInt = 16
    learning_rate: PositiveFloat = 9.65e-6
    batch_size: PositiveInt = 32
    micro_batch_size: PositiveInt | None = None  # None: the whole batch at once
    dropout: Fraction = 0.2
    weight_decay: NonNegativeFloat = 0.0  # the paper does not say
    max_tokens: PositiveInt = 2048  # prompt and response; longer demonstrations are left out
    pretraining: SupervisedMix | None = None  # in the model PPO starts from, see appendix C.3
    result: Literal["best", "last"] = "best"  # which epoch's weights: chosen, or the last
    selection: SamplingConfig = SamplingConfig()  # of the responses whose scores pick the epoch
    optimizer: OptimizerName = "adamw"  # moments in 32 bits, in 8, or in 8 and paged to the host
    activation_checkpointing: bool = False  # layers keep their inputs alone: slower, less memory
    attn_implementation: str | None = None  # sdpa, eager, flash_attention_2; null: as loaded
    adaptation: Adaptation = Full()
    precision: Precision = Precision()
    trainer: dict[str, object] = {}  # further TrainingArguments, validated by name

    @model_validator(mode="after")
    def micro_batches_fill_a_batch(self) -> Self:
        """Check that the batch is a whole number of micro-batches."""
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size ({self.micro_batch_size}) must divide "
                f"batch_size ({self.batch_size})"
            )
        return self

    @model_validator(mode="after")
    def what_is_trained_is_not_quantised(self) -> Self:
        """Refuse full fine-tuning of quantised weights."""
        require_trainable(self.precision, self.adaptation.family)
        return self
