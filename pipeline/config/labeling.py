"""The settings of a labeling room: sign-in, questions, tasks handed out."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from reward_models.records import Use
from stages.config import Config, FilePath, Fraction, ServedFile


class Screening(Config):
    """Gold tasks come first; people who agree with too few of them get nothing more.

    The cut-offs are the paper's soft ones (Ouyang et al. 2022, appendix B.1).
    """

    tasks: PositiveInt = 10  # gold tasks that everybody answers first
    comparisons: Fraction = 0.75  # share of their pairs to order as gold does
    flags: Fraction = 0.75  # share of their flags to answer as gold does, where gold has flags


class AdaptiveOverlap(Config):
    """A further person ranks a task only where it pays: where a person and a model disagree.

    The models are the judges that ranked it (`rlhf judge-tasks`) and `reward_model`.
    """

    most: Annotated[int, Field(ge=2)] = 3  # people who rank one task; a third where two disagree
    agreement: Fraction = 0.6  # share of pairs ordered alike below which another is wanted
    margin: NonNegativeFloat = 0.0  # also where the mean gap of the reward model's scores is less


class Proxy(Config):
    """A proxy in front signs people in and names them in a header; there is no other way in."""

    header: str = "X-Forwarded-User"
    addresses: list[str] = ["127.0.0.1", "::1"]  # of the proxy: from elsewhere the header is void
    owners: list[str] = []  # who has the owner's page


class Certificate(Config):
    """TLS by the room itself: paths of a certificate and its key."""

    certificate: ServedFile
    key: ServedFile


class RoomSettings(Config):
    """The settings of every room, within an experiment or outside."""

    form: ServedFile | None = None  # which questions are asked: a YAML file; None: the paper's
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 7860
    lease_minutes: PositiveFloat = 30.0  # how long a task is held for one who stopped working
    gold: ServedFile | None = None  # a folder: tasks.jsonl, rankings.jsonl known to be right
    gold_share: Fraction = 0.05  # of the tasks handed out, where there are gold tasks
    screening: Screening | None = None
    practice: ServedFile | None = (
        None  # such a folder; comes first, and is explained by its `notes`
    )
    adaptive_overlap: AdaptiveOverlap | None = None  # None: `per_task` people, whatever they answer
    categories: dict[str, PositiveFloat] = {}  # weights; categories not named come last
    access: Literal["name", "password"] | None = None  # None: a name where host is this machine
    proxy: Proxy | None = None
    tls: Certificate | None = None
    behind_tls: bool = False  # a proxy in front has the certificate: cookies travel by TLS only
    reward_model: ServedFile | None = None  # its agreement with each person is shown the owner

    @model_validator(mode="after")
    def settings_fit_each_other(self) -> Self:
        """Refuse what would have no effect."""
        if self.screening is not None and self.gold is None:
            raise ValueError(
                "screening is set but gold is not: there is nothing to screen people by"
            )
        rule = self.adaptive_overlap
        if rule is not None and rule.margin and self.reward_model is None:
            raise ValueError(
                f"adaptive_overlap.margin is {rule.margin} but reward_model is not set: "
                "there are no scores that could lie close"
            )
        if self.proxy is not None and self.access is not None:
            raise ValueError(
                f"access is '{self.access}' but proxy is set: the proxy signs people in"
            )
        if self.tls is not None and self.behind_tls:
            raise ValueError("tls and behind_tls are both set; expected one of them")
        return self


class HumanAnnotators(RoomSettings):
    """People rank in the browser (`rlhf label CONFIG`)."""

    kind: Literal["human"]
    tasks: FilePath | None = None  # a file of ranking tasks; None: the outputs that the run samples
    store: ServedFile | None = None  # a path or URL; None: rankings.sqlite in the run's folder
    per_task: PositiveInt = 1  # annotators who rank each task
    enough: Fraction = 1.0  # share of tasks that must be ranked before the reward model is trained
    choose: Literal["random", "uncertainty"] = "random"  # what is ranked first; docs/labeling.md
    use: Use = "people"  # whose rankings the reward model learns from; people's score it
    wait: bool = True  # `rlhf run` serves the page until enough is ranked; false: it stops there

    @model_validator(mode="after")
    def people_and_models_are_enough(self) -> Self:
        """Refuse a choice without features to choose by, and an overlap that cannot grow."""
        if self.choose == "uncertainty" and self.reward_model is None:
            raise ValueError(
                "choose is 'uncertainty' but reward_model is not set: the features that it chooses "
                "by are that model's"
            )
        rule = self.adaptive_overlap
        if rule is not None and rule.most <= self.per_task:
            raise ValueError(
                f"adaptive_overlap.most is {rule.most} but per_task is {self.per_task}: expected "
                "more people a task at most than at least"
            )
        return self
