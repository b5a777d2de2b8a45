"""What an experiment may be told about its labeling room: who comes in, and what they are given."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from stages.config import Config, Fraction


class HumanAnnotators(Config):
    """People rank in the browser (`rlhf label CONFIG`)."""

    kind: Literal["human"]
    tasks: str | None = None  # a file of ranking tasks; None: the outputs that the run samples
    store: str | None = None  # a path or database URL; None: rankings.sqlite in the run's folder
    form: str | None = None  # which questions are asked: a YAML file; None: the paper's
    per_task: PositiveInt = 1  # annotators who rank each task
    enough: Fraction = 1.0  # share of tasks that must be ranked before the reward model is trained
    wait: bool = True  # `rlhf run` serves the page until enough is ranked; false: it stops there
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 7860
    lease_minutes: PositiveFloat = 30.0  # how long a task is held for one who stopped working
