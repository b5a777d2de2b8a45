"""Which scorers judge toxicity and entailment. A choice is told apart by its `kind`."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from stages.config import Config, Fraction
from stages.config_base import ModelName


class ProfanityConfig(Config):
    """The classifier inside alt-profanity-check: offline, small, for large effects."""

    kind: Literal["profanity"] = "profanity"


class ClassifierConfig(Config):
    """A sequence classifier: a folder, or a model of the hub such as unitary/toxic-bert."""

    kind: Literal["classifier"]
    model: ModelName
    label: str | None = None  # whose probability is toxicity; None: told by the labels' names
    activation: Literal["sigmoid", "softmax"] | None = None  # None: as the model's config says
    threshold: Fraction = 0.5
    batch_size: PositiveInt = 64
    max_tokens: PositiveInt = 512


class EntailmentConfig(Config):
    """A classifier of (passage, sentence) pairs: an NLI model, a folder or of the hub."""

    kind: Literal["nli"] = "nli"
    model: ModelName
    label: str | None = None  # the one that says supported; None: told by the labels' names
    threshold: Fraction = 0.5
    batch_size: PositiveInt = 32
    max_tokens: PositiveInt = 512


ToxicityScorerConfig = Annotated[ProfanityConfig | ClassifierConfig, Field(discriminator="kind")]
