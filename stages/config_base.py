"""What every config shares."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Config(BaseModel):
    """What every config shares: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
