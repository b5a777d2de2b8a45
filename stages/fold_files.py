"""What folds say about a reward model, as files beside it: annotators, or prompts, left out."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from reward_models.records import Ranking, RankingTask
from stages.config import RewardConfig
from stages.progress import Report
from stages.prompt_folds import accuracy_over_all_prompts
from stages.reward_folds import accuracy_on_unseen_annotators

ANNOTATOR_FOLDS, PROMPT_FOLDS = "annotator_folds.json", "prompt_folds.json"


def write_folds(
    config: RewardConfig,
    *,
    base: str | Path,
    tasks: Sequence[RankingTask],
    rankings: Sequence[Ranking],
    out: Path,
    seed: int,
    report: Report,
) -> None:
    """Write into `out` those folds that the config asks for; what is trained for them goes.

    Their curves are not the reward model's: only how far they are is told.
    """
    work = out / "folds.work"
    if config.annotator_folds is not None:
        found = accuracy_on_unseen_annotators(
            config,
            config.annotator_folds,
            base=base,
            tasks=tasks,
            rankings=rankings,
            work=work,
            seed=seed,
            report=report,
        )
        _write(out / ANNOTATOR_FOLDS, found, work)
    if config.prompt_folds is not None:
        found = accuracy_over_all_prompts(
            config,
            config.prompt_folds,
            base=base,
            tasks=tasks,
            rankings=rankings,
            states=out / "checkpoints",
            work=work,
            seed=seed,
            report=report,
        )
        _write(out / PROMPT_FOLDS, found, work)


def _write(path: Path, found: Mapping[str, Any], work: Path) -> None:
    if PartialState().is_main_process:
        aside = path.with_name(path.name + ".part")
        aside.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        aside.replace(path)
        shutil.rmtree(work)
