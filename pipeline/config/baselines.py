"""The baselines that are evaluated beside the trained policies. Torch-free, like every config."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from stages.config import Config, DataSource
from stages.sft.config import SFTConfig


class PromptedBase(Config):
    """The base behind a few demonstrations, chosen by reward-model score (Ouyang et al. 2022, 3.5).

    `candidates` sets of `shots` demonstrations are drawn; the one under which the base's answers to
    `prompts` validation prompts score best is the prefix of every prompt.
    """

    name: ClassVar = "prompted"  # in tables and folders
    kind: Literal["prompted"]
    shots: PositiveInt = 4
    candidates: PositiveInt = 8
    prompts: PositiveInt = 64
    max_prefix_tokens: PositiveInt = 1024  # longer sets are not candidates


class BestOfN(Config):
    """The best of n answers by the reward model (Stiennon et al. 2020; Gao et al. 2022)."""

    kind: Literal["best_of_n"]
    n: Annotated[int, Field(ge=2)] = 16
    policy: Literal["base", "sft"] = "sft"
    temperature: PositiveFloat = 1.0

    @property
    def name(self) -> str:
        """Its name in tables and folders."""
        return f"best-of-{self.n}" + ("" if self.policy == "sft" else f"-{self.policy}")


class TaskSource(Config):
    """A public task: rows of a file or of the hub, and several ways to ask for their answer.

    Templates and answer hold the rows' keys in braces: "Is this review kind? {text}".
    """

    name: str
    cluster: str  # tasks of one kind; a whole cluster is held out
    source: DataSource  # a file of rows, or hf:NAME, as those of `data`
    templates: Annotated[list[str], Field(min_length=1)]
    answer: str


class InstructionTuned(Config):
    """The base fine-tuned on tasks written as instructions (FLAN, T0), with clusters held out.

    Without `tasks` they are the quickstart world's, a cluster each kind of request.
    """

    name: ClassVar = "instructed"  # in tables and folders
    kind: Literal["instruction_tuned"]
    tasks: list[TaskSource] = []
    held_out: Annotated[list[str], Field(min_length=1)]
    examples_per_task: PositiveInt = 200
    zero_shot: NonNegativeInt = 100  # examples of each held-out task to be answered
    sft: SFTConfig | None = None  # None: as stage one

    @model_validator(mode="after")
    def something_is_left_to_learn_from(self) -> Self:
        """Refuse held-out clusters that no task has, and to hold out all of them."""
        there = {task.cluster for task in self.tasks}
        unknown = set(self.held_out) - there
        if self.tasks and (unknown or there <= set(self.held_out)):
            raise ValueError(
                f"held_out is {self.held_out} but the tasks' clusters are {sorted(there)}; "
                "expected some of them, not all"
            )
        return self


Baseline = Annotated[PromptedBase | BestOfN | InstructionTuned, Field(discriminator="kind")]
