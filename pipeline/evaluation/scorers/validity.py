"""How far each scorer can be believed: what it was measured on, and against what.

A calibration is measured where the same texts also have Perspective's scores: in the rows
themselves, or in the file that `evaluation.calibration` names, such as OpenAI's 3,600 completions.
"""

import math
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.evaluation import EvaluationConfig
from pipeline.evaluation import statistics
from pipeline.evaluation.external.columns import FILE_SCORER
from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.samples.scored_rows import names_of
from pipeline.evaluation.scorers.scorer import Scorer, scored
from reward_models.row_files import csv_rows

TOXIC = 0.5
_MEASURES = {"unsupported": 1.0, "novel_bigrams": 1.0, "support": -1.0}  # sign towards "made up"


def measured_validity(
    rows: Sequence[Completion], scorers: Sequence[Scorer], config: EvaluationConfig
) -> dict[str, Any]:
    """What the files that the config names, and the rows themselves, say about the scorers."""
    own = {name: calibration(rows, name) for name in names_of(rows) if name != FILE_SCORER}
    found = {name: measured for name, measured in own.items() if measured is not None}
    if config.calibration is not None:
        found |= calibrated_on(scorers, Path(config.calibration))
    about: dict[str, Any] = {"calibration": found} if found else {}
    if config.grounding:
        about["validity"] = [
            row
            for path in config.grounding
            for row in grounding_validity(scorers, Path(path), config.closed_domain[0])
        ]
    return about


def validity_notes(about: Mapping[str, Any]) -> list[str]:
    """The same in sentences."""
    notes = [
        f"{name}: AUROC {found['auroc']:.3f} against {found['against']} (n {found['n']}); "
        f"{found['threshold_at_equal_base_rate']:.2f} calls as many toxic as that does"
        for name, found in about.get("calibration", {}).items()
    ]
    return notes + [
        f"{row['scorer']}, {row['metric']}: AUROC {row['auroc']:.3f} on {row['on']} "
        f"(n {row['n']}, {row['positives']} not attributable)"
        for row in about.get("validity", ())
    ]


def grounding_validity(
    scorers: Sequence[Scorer], path: Path, category: str
) -> list[Mapping[str, Any]]:
    """How well each measure of hallucination tells what BEGIN's annotators called unsupported."""
    rows, wrong = read_begin(path, category)
    positive_N = np.array(wrong)
    found: list[Mapping[str, Any]] = []
    for scorer in scorers:
        judged = scored(rows, [scorer])
        for metric, sign in _MEASURES.items():
            if not all(row.has(scorer.name, metric) for row in judged):
                continue
            value_N = np.array([row.score(scorer.name, metric) or 0.0 for row in judged])
            found.append(
                {
                    "scorer": scorer.name,
                    "metric": metric,
                    "auroc": statistics.auroc(sign * value_N, positive_N),
                    "on": path.name,
                    "n": len(rows),
                    "positives": int(positive_N.sum()),
                }
            )
    return found


def read_begin(path: Path, category: str) -> tuple[list[Completion], list[bool]]:
    """BEGIN's responses (Dziri et al. 2022) to a message in the light of a passage, with labels."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected BEGIN's tsv of labelled responses")
    found = [row for _, row in csv_rows(path, delimiter="\t", quoted=False)]
    needed = {"model_name", "knowledge", "message", "response", "begin_label"}
    if not found or not needed <= found[0].keys():
        raise ValueError(f"{path}: expected columns {', '.join(sorted(needed))}")
    rows = [
        Completion(
            id=str(number),
            model=row["model_name"],
            prompt=row["message"],
            completion=row["response"],
            context=row["knowledge"],
            category=category,
        )
        for number, row in enumerate(found)
    ]
    return rows, [row["begin_label"] != "Fully attributable" for row in found]


def calibration(rows: Sequence[Completion], scorer: str) -> Mapping[str, Any] | None:
    """AUROC against given toxicity of .5 and more, and the threshold that calls as many toxic."""
    pairs = array("d")
    for row in rows:
        if row.has(FILE_SCORER, "toxicity") and row.has(scorer, "toxicity"):
            ours, theirs = row.score(scorer, "toxicity"), row.score(FILE_SCORER, "toxicity")
            if ours is not None and theirs is not None:
                pairs.extend((ours, theirs))
    if not pairs:
        return None
    score_N, given_N = np.frombuffer(pairs).reshape(-1, 2).T
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
        "n": len(score_N),
    }


def calibrated_on(scorers: Sequence[Scorer], path: Path) -> dict[str, Mapping[str, Any]]:
    """The same for scorers of toxicity on a file of texts with given scores."""
    from pipeline.evaluation.external.sample_files import open_samples

    files = open_samples([path], {})
    if not files.gives("toxicity"):
        raise ValueError(f"{path}: no column 'toxicity' in it; nothing to calibrate against")
    rows = scored(list(files.rows()), scorers)
    found = {each.name: calibration(rows, each.name) for each in scorers}
    return {name: measured for name, measured in found.items() if measured is not None}
