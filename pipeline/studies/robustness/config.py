"""What the robustness suite may be told: one domain to train on, another to test on, families."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from stages.adapters.config import Adaptation, Full, rates_of
from stages.config import Config, DataSource, ModelName
from stages.generation.config import SamplingConfig
from stages.sft.config import SFTConfig

FULL = "full"  # the family that the others are compared with


class QuickstartDomains(Config):
    """The invented world: training people, places and phrasings, against those of its test side."""

    kind: Literal["quickstart"] = "quickstart"
    demonstrations: PositiveInt = 400
    test_prompts: PositiveInt = 300  # of each domain


class FileDomains(Config):
    """Demonstrations of your own; those of the two test sets hold the texts to come near to.

    A demonstration may list several under `references`; otherwise its response is the only one.
    """

    kind: Literal["files"]
    train: DataSource
    validation: DataSource
    in_domain: DataSource
    out_of_domain: DataSource


class FamilyRun(Config):
    """One family with the settings in which it differs from the shared ones."""

    adaptation: Adaptation = Full()
    learning_rate: PositiveFloat | None = None  # None: the shared one times the family's rate
    epochs: PositiveInt | None = None


class RobustnessConfig(Config):
    """Each family is trained on one domain by stage one, then tested in it and outside."""

    name: str = "robustness"
    model: ModelName = "quickstart"
    threads: PositiveInt | None = None
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)] = [0]
    data: Annotated[QuickstartDomains | FileDomains, Field(discriminator="kind")] = (
        QuickstartDomains()
    )
    sft: SFTConfig = SFTConfig()
    families: Annotated[dict[str, FamilyRun], Field(min_length=2)] = {FULL: FamilyRun()}
    sampling: SamplingConfig = SamplingConfig(temperature=0.0)
    resamples: PositiveInt = 10_000
    sign_flips: PositiveInt = 20_000
    keep_models: bool = False  # what was trained is not needed once it has answered

    @model_validator(mode="after")
    def full_fine_tuning_is_among_the_families(self) -> Self:
        """Check that there is something to compare the restricted families with."""
        if FULL not in self.families or self.families[FULL].adaptation.family != FULL:
            raise ValueError(
                f"families has {', '.join(self.families)}; expected one named '{FULL}', with "
                "adaptation.family full, that the others are compared with"
            )
        return self

    def stage(self, name: str) -> SFTConfig:
        """Stage one's settings for the family of that name."""
        run = self.families[name]
        rate = self.sft.learning_rate * rates_of(run.adaptation.model_dump()).policy
        told = {
            "learning_rate": run.learning_rate or rate,
            "epochs": run.epochs or self.sft.epochs,
            "adaptation": run.adaptation,
        }
        return self.sft.model_copy(update=told)
