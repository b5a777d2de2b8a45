"""The inputs of an evaluation's suites."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.evaluation import EvaluationConfig
from reward_models.records import Prompt
from stages.progress import Report, silent


@dataclass(frozen=True, slots=True)
class Inputs:
    """The policies to evaluate, and their prompts. Without its input a suite has no rows."""

    config: EvaluationConfig
    policies: Mapping[str, str | Path]
    prompts: Sequence[Prompt] = ()
    toxicity_prompts: Sequence[Prompt] = ()
    held_out_texts: Sequence[str] = ()
    reward_model: Path | None = None
    seed: int = 0
    report: Report = silent
