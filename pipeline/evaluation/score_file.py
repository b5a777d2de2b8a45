"""`rlhf score`: foreign samples through the same scorers and statistics as our own policies."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation import statistics
from pipeline.evaluation.alignment import aligned, matched_pairs
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.foreign import FILE_SCORER, KNOWN_SCORES, load_samples
from pipeline.evaluation.results import Results, check_failures, results_of, scorer_identities
from pipeline.evaluation.results_file import write_results
from pipeline.evaluation.samples import Completion
from pipeline.evaluation.scorers import Scorer, scored
from pipeline.evaluation.tables import Quantity, Resampling, Table, tabulate
from pipeline.evaluation.toxicity import (
    DEFAULT_THRESHOLD,
    PROFANITY,
    ProfanityScorer,
    toxicity_tables,
)
from pipeline.evaluation.truthfulness import truthfulness_tables
from pipeline.evaluation.wording import abstains
from reward_models.records import write_jsonl


def score_file(
    paths: Sequence[Path],
    columns: Mapping[str, str],
    *,
    out: Path,
    scorers: Sequence[Scorer] | None = None,
    against: Sequence[str] = (),
    config: EvaluationConfig | None = None,
    seed: int = 0,
) -> Results:
    """Score the samples in `paths`; write out/samples.jsonl and out/results.json.

    `scorers` None means the offline toxicity scorer, and only where the files give no score of
    their own. `against` holds pair patterns (see `matched_pairs`). Raises ValueError on bad input,
    before anything is written, and after writing if too many rows could not be scored.
    """
    config = config or EvaluationConfig()
    loaded = load_samples(paths, columns)
    notes = list(loaded.notes)
    rows = aligned(loaded.rows, config.missing, notes)
    models = list(dict.fromkeys(row.model for row in rows))
    pairs = matched_pairs(models, against)
    given = {name for row in rows for name in row.scores.get(FILE_SCORER) or {}}
    if scorers is None:
        scorers = [] if given else [ProfanityScorer()]
    rows = scored(rows, scorers)
    resampling = Resampling(config.resamples, config.sign_flips, seed)
    results = results_of(
        _tables(rows, models, given, scorers),
        pairs,
        resampling,
        scorers=scorer_identities(rows),
        notes=notes,
        about={"files": [path.name for path in paths], "seed": seed, **_calibration(rows)},
    )
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(out / "samples.jsonl", (row.to_json() for row in rows))
    write_results(results, out / "results.json")
    check_failures(results, config.max_failed)
    return results


def _tables(
    rows: Sequence[Completion], models: Sequence[str], given: set[str], scorers: Sequence[Scorer]
) -> list[Table]:
    found: list[Table] = []
    if "toxicity" in given:
        found += toxicity_tables(rows, models, scorer=FILE_SCORER)
    if "true" in given:
        found += truthfulness_tables(rows, models, scorer=FILE_SCORER)
    for name in sorted(given - set(KNOWN_SCORES)):
        found += _means(rows, models, "scores", FILE_SCORER, name)
    for scorer in scorers:
        metrics = {name for row in rows for name in row.scores[scorer.name] or {}} or {scorer.name}
        if "toxicity" in metrics:
            suite = f"toxicity_{scorer.name}" if "toxicity" in given else "toxicity"
            threshold = DEFAULT_THRESHOLD if scorer.threshold is None else scorer.threshold
            found += toxicity_tables(
                rows, models, scorer=scorer.name, threshold=threshold, suite=suite
            )
        for name in sorted(metrics - {"toxicity"}):
            found += _means(rows, models, "scores", scorer.name, name)
    return found + _style(rows, models)


def _means(
    rows: Sequence[Completion], models: Sequence[str], suite: str, scorer: str, metric: str
) -> list[Table]:
    found = []
    for prompt_type in dict.fromkeys(row.prompt_type for row in rows):
        kept = [row for row in rows if row.prompt_type == prompt_type and row.has(scorer, metric)]
        quantity = Quantity(suite, metric, prompt_type, scorer)
        found.append(tabulate(kept, quantity, lambda row: row.score(scorer, metric), models))
    return found


def _style(rows: Sequence[Completion], models: Sequence[str]) -> list[Table]:
    """Length and refusals stand beside every score: both move scores without any merit."""
    found = []
    for prompt_type in dict.fromkeys(row.prompt_type for row in rows):
        kept = [row for row in rows if row.prompt_type == prompt_type]
        words = Quantity("responses", "words", prompt_type)
        refused = Quantity("responses", "refusal", prompt_type, "phrases")
        found += [
            tabulate(kept, words, lambda row: float(len(row.completion.split())), models),
            tabulate(kept, refused, lambda row: float(abstains(row.completion)), models),
        ]
    return found


def _calibration(rows: Sequence[Completion]) -> dict[str, Any]:
    """How well the offline scorer finds what the given scores call toxic, where both are there."""
    pairs = [
        (ours, theirs)
        for row in rows
        if row.has(FILE_SCORER, "toxicity") and row.has(PROFANITY, "toxicity")
        if (ours := row.score(PROFANITY, "toxicity")) is not None
        if (theirs := row.score(FILE_SCORER, "toxicity")) is not None
    ]
    if not pairs:
        return {}
    score_N, given_N = np.array(pairs).T
    positive_N = given_N >= DEFAULT_THRESHOLD
    area = statistics.auroc(score_N, positive_N)
    if not math.isfinite(area):
        return {}
    same_rate = float(np.quantile(score_N, 1 - positive_N.mean()))
    return {
        "calibration": {
            "scorer": PROFANITY,
            "against": "given toxicity >= 0.5",
            "auroc": area,
            "threshold_at_equal_base_rate": same_rate,
            "n": len(pairs),
        }
    }
