"""TrainingArguments from a stage's settings and the further ones under its `trainer:` key."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from transformers import TrainingArguments

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def training_arguments(
    kind: type[Arguments], ours: Mapping[str, Any], further: Mapping[str, Any]
) -> Arguments:
    """Both together; ValueError where `further` names no argument, or one that the stage sets."""
    known = {field.name for field in fields(kind) if field.init}
    for name in further:
        if name not in known:
            raise ValueError(f"trainer.{name} is not a training argument of {kind.__name__}")
        if name in ours:
            raise ValueError(
                f"trainer.{name} is set by the stage itself; use the stage's own settings"
            )
    try:
        return kind(**ours, **further)
    except (TypeError, ValueError) as error:
        raise ValueError(f"trainer: {str(error).splitlines()[0]}") from None
