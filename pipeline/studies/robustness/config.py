"""The robustness suite's config: one domain to train on, another to test on, families."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipeline.quickstart.data import Sizes, quickstart_data
from reward_models.records import Demonstration, Prompt
from stages.adapters.config import Adaptation, Full, rates_of
from stages.config import Config, DataSource, ModelName
from stages.generation.config import SamplingConfig
from stages.sft.config import SFTConfig

FULL = "full"  # the family that the others are compared with
REFERENCES = "references"  # key of a test prompt's extra fields: texts that an answer may equal


@dataclass(frozen=True, slots=True)
class Domains:
    """Training and validation demonstrations of one domain; test prompts of it and of another."""

    train: Sequence[Demonstration]
    validation: Sequence[Demonstration]
    in_domain: Sequence[Prompt]
    out_of_domain: Sequence[Prompt]


class QuickstartDomains(Config):
    """The invented world: training people, places and phrasings, against those of its test side."""

    kind: Literal["quickstart"] = "quickstart"
    demonstrations: PositiveInt = 400
    test_prompts: PositiveInt = 300  # of each domain

    def load(self) -> Domains:
        """Make both domains; the world's own answers are the references."""
        sizes = Sizes(
            demonstrations=self.demonstrations,
            ranking_prompts=0,
            ppo_prompts=0,
            validation_prompts=self.test_prompts,
            test_prompts=self.test_prompts,
            toxicity_prompts=0,
            pretraining_texts=0,
            held_out_texts=0,
        )
        data = quickstart_data(sizes, 0)
        return Domains(
            data.demonstrations,
            data.validation,
            [_with_reference(prompt) for prompt in data.validation_prompts],
            [_with_reference(prompt) for prompt in data.test_prompts],
        )


class FileDomains(Config):
    """Demonstrations of your own; those of the two test sets hold the references.

    A demonstration may list several under `references`; otherwise its response is the only one.
    """

    kind: Literal["files"]
    train: DataSource
    validation: DataSource
    in_domain: DataSource
    out_of_domain: DataSource

    def load(self) -> Domains:
        """Load both domains; ValueError `file:line: ...` for a row that is no demonstration."""
        from stages.data.demonstrations import load_demonstrations

        return Domains(
            load_demonstrations(self.train),
            load_demonstrations(self.validation),
            _test_prompts(load_demonstrations(self.in_domain), "in"),
            _test_prompts(load_demonstrations(self.out_of_domain), "out"),
        )


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
    keep_models: bool = False  # trained models are not needed once they have answered

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
        """Return stage one's settings for the family of that name."""
        run = self.families[name]
        rate = self.sft.learning_rate * rates_of(run.adaptation.model_dump()).policy
        changes = {
            "learning_rate": run.learning_rate or rate,
            "epochs": run.epochs or self.sft.epochs,
            "adaptation": run.adaptation,
        }
        return self.sft.model_copy(update=changes)


def _with_reference(prompt: Prompt) -> Prompt:
    return replace(prompt, extra={**prompt.extra, REFERENCES: [prompt.extra["world"]["reference"]]})


def _test_prompts(demonstrations: Sequence[Demonstration], name: str) -> list[Prompt]:
    return [
        Prompt(
            one.prompt,
            id=one.id or f"{name}-{number}",
            context=one.context,
            category=one.category,
            history=one.history,
            extra={**one.extra, REFERENCES: list(one.extra.get(REFERENCES, [one.response]))},
        )
        for number, one in enumerate(demonstrations)
    ]
