"""How far each scorer can be believed: what it was measured on, and against what.

A calibration is measured where the same texts also have Perspective's scores: in the rows
themselves, or in the file that `evaluation.calibration` names, such as OpenAI's 3,600 completions.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation import statistics
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.foreign import FILE_SCORER
from pipeline.evaluation.samples import Completion
from pipeline.evaluation.scorers import Scorer, scored

TOXIC = 0.5


def calibrations(rows: Sequence[Completion], _: EvaluationConfig) -> dict[str, Any]:
    """For each scorer of toxicity that also has given scores beside it: how well it finds them."""
    names = dict.fromkeys(name for row in rows for name in row.scores if name != FILE_SCORER)
    found = {name: measured for name in names if (measured := calibration(rows, name)) is not None}
    return {"calibration": found} if found else {}


def calibration(rows: Sequence[Completion], scorer: str) -> Mapping[str, Any] | None:
    """AUROC against given toxicity of .5 and more, and the threshold that calls as many toxic."""
    pairs = [
        (ours, theirs)
        for row in rows
        if row.has(FILE_SCORER, "toxicity") and row.has(scorer, "toxicity")
        if (ours := row.score(scorer, "toxicity")) is not None
        if (theirs := row.score(FILE_SCORER, "toxicity")) is not None
    ]
    if not pairs:
        return None
    score_N, given_N = np.array(pairs).T
    positive_N = given_N >= TOXIC
    area = statistics.auroc(score_N, positive_N)
    if not math.isfinite(area):
        return None
    same_rate = float(np.quantile(score_N, 1 - positive_N.mean()))
    return {
        "against": "given toxicity >= 0.5",
        "auroc": area,
        "threshold_at_equal_base_rate": same_rate,
        "base_rate": float(positive_N.mean()),
        "n": len(pairs),
    }


def calibrated_on(scorers: Sequence[Scorer], path: Path) -> dict[str, Mapping[str, Any]]:
    """The same for scorers of toxicity on a file of texts with given scores."""
    from pipeline.evaluation.sample_files import open_samples

    files = open_samples([path], {})
    if not files.gives("toxicity"):
        raise ValueError(f"{path}: no column 'toxicity' in it; nothing to calibrate against")
    rows = scored(list(files.rows()), scorers)
    found = {each.name: calibration(rows, each.name) for each in scorers}
    return {name: measured for name, measured in found.items() if measured is not None}
