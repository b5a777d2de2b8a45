"""The `precision:` key: dtypes of weights and of computing. See docs/precision.md."""

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from stages.config import Config


class Precision(Config):
    """Dtypes of an experiment's or a stage's models; `auto` is what the device is good at.

    Adapters, heads, losses, log-probabilities, Adam's moments and normalisers are float32 whatever
    is chosen here.
    """

    quantised: ClassVar = ("nf4", "int8")

    weights: Literal["auto", "fp32", "bf16", "fp16", "nf4", "int8"] = "auto"  # of what is frozen
    compute: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # of the model's products
    masters: Literal["fp32", "kahan", "stochastic"] = "fp32"  # what full fine-tuning trains

    @model_validator(mode="after")
    def frozen_weights_compute_in_their_own_dtype(self) -> Self:
        """Refuse two dtypes for one product: weights would be converted again and again."""
        whole = self.weights not in ("auto", *self.quantised)
        if whole and self.compute not in ("auto", self.weights):
            raise ValueError(
                f"precision.weights is {self.weights} but precision.compute is {self.compute}; "
                "expected the same, or one of them auto, or quantised weights"
            )
        return self


AUTO = Precision()


def require_trainable(precision: Precision, family: str) -> None:
    """Raise ValueError where weights that full fine-tuning would move are to be quantised."""
    if family == "full" and precision.weights in Precision.quantised:
        raise ValueError(
            f"precision.weights is {precision.weights} but adaptation.family is full: quantised "
            "weights cannot be trained; expected lora or another adapter"
        )
