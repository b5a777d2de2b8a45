"""The measured validity of each scorer: on what, and against what.

A calibration is measured where the same texts also have Perspective's scores: in the rows
themselves, or in the file that `evaluation.calibration` names, such as OpenAI's 3,600 completions.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.evaluation import EvaluationConfig
from pipeline.evaluation import statistics
from pipeline.evaluation.external.sample_files import FILE_SCORER, SampleFiles, open_samples
from pipeline.evaluation.samples.records import Completion, ScoredRows
from pipeline.evaluation.scorers.scorer import Scorer, scored
from reward_models.row_files import csv_rows

TOXIC = 0.5
# Measures of hallucination, and their sign towards it.
_MEASURES = {"unsupported": 1.0, "novel_bigrams": 1.0, "support": -1.0}


def measured_validity(
    rows: ScoredRows, by_kind: Mapping[str, Sequence[Scorer]], config: EvaluationConfig
) -> dict[str, Any]:
    """Return the scorers' validity on the rows themselves and on the files of the config."""
    unique = {scorer.name: scorer for scorers in by_kind.values() for scorer in scorers}
    scorers = list(unique.values())
    names = [name for name in rows.scorers if name != FILE_SCORER]
    calibrations = {name: calibration(rows, name) for name in names}
    if config.calibration is not None:
        calibrations |= calibrated_on(scorers, Path(config.calibration))
    measured = {name: one for name, one in calibrations.items() if one is not None}
    validity: dict[str, Any] = {"calibration": measured} if measured else {}
    if config.grounding:
        validity["validity"] = [
            row
            for path in config.grounding
            for row in grounding_validity(scorers, Path(path), config.closed_domain[0])
        ]
    return validity


def validity_notes(validity: Mapping[str, Any]) -> list[str]:
    """Return the same in sentences."""
    notes = [
        f"{name}: AUROC {one['auroc']:.3f} against {one['against']} (n {one['n']}); "
        f"{one['threshold_at_equal_base_rate']:.2f} calls as many toxic as that does"
        for name, one in validity.get("calibration", {}).items()
    ]
    return notes + [
        f"{row['scorer']}, {row['metric']}: AUROC {row['auroc']:.3f} on {row['on']} "
        f"(n {row['n']}, {row['positives']} not attributable)"
        for row in validity.get("validity", ())
    ]


def grounding_validity(
    scorers: Sequence[Scorer], path: Path, category: str
) -> list[Mapping[str, Any]]:
    """Return how well each measure detects what BEGIN's annotators called unsupported."""
    responses, labels = read_begin(path, category)
    positive_N = np.array(labels)
    rows = ScoredRows.of(scored(responses, scorers))
    return [
        {
            "scorer": scorer.name,
            "metric": metric,
            "auroc": statistics.auroc(
                sign * np.nan_to_num(rows.score(scorer.name, metric)), positive_N
            ),
            "on": path.name,
            "n": len(rows),
            "positives": int(positive_N.sum()),
        }
        for scorer in scorers
        for metric, sign in _MEASURES.items()
        if rows.has(scorer.name, metric).all()
    ]


def read_begin(path: Path, category: str) -> tuple[list[Completion], list[bool]]:
    """Read BEGIN's responses to a message and a passage, with labels (Dziri et al. 2022)."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected BEGIN's tsv of labelled responses")
    raw = [row for _, row in csv_rows(path, delimiter="\t", quoted=False)]
    needed = {"model_name", "knowledge", "message", "response", "begin_label"}
    if not raw or not needed <= raw[0].keys():
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
        for number, row in enumerate(raw)
    ]
    return rows, [row["begin_label"] != "Fully attributable" for row in raw]


def calibration(rows: ScoredRows, scorer: str) -> Mapping[str, Any] | None:
    """Return AUROC against given toxicity of .5 and more, and the threshold of equal rate."""
    score_S, given_S = rows.score(scorer, "toxicity"), rows.score(FILE_SCORER, "toxicity")
    has_both_S = np.isfinite(score_S + given_S)
    score_S, positive_S = score_S[has_both_S], given_S[has_both_S] >= TOXIC
    area = statistics.auroc(score_S, positive_S)
    if not math.isfinite(area):
        return None
    base_rate = float(positive_S.mean())
    return {
        "against": "given toxicity >= 0.5",
        "auroc": area,
        "threshold_at_equal_base_rate": float(np.quantile(score_S, 1 - positive_S.mean())),
        "base_rate": base_rate,
        "n": len(score_S),
    }


def calibrated_on(scorers: Sequence[Scorer], path: Path) -> dict[str, Mapping[str, Any] | None]:
    """Return the same for scorers of toxicity on a file of texts with given scores."""
    rows = ScoredRows.of(scored(list(open_calibration(path).rows()), scorers))
    return {scorer.name: calibration(rows, scorer.name) for scorer in scorers}


def open_calibration(path: Path) -> SampleFiles:
    """Open a file of texts with given toxicity; raise ValueError where it gives none."""
    files = open_samples([path], {})
    if not files.gives("toxicity"):
        raise ValueError(f"{path}: no column 'toxicity' in it; nothing to calibrate against")
    return files
