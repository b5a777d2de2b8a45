"""What other people's scored samples come to: a table for each score, whoever gave it."""

from collections.abc import Sequence
from functools import partial

from pipeline.evaluation.by_prompt import PROMPTS, by_prompt_tables
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.foreign import FILE_SCORER
from pipeline.evaluation.samples import Completion
from pipeline.evaluation.scored_rows import names_of, where
from pipeline.evaluation.style import ANSWERS, STYLE
from pipeline.evaluation.tables import Better, Quantity, Table, tabulate
from pipeline.evaluation.toxicity import toxicity_tables
from pipeline.evaluation.toxicity_suite import threshold_of
from pipeline.evaluation.truthfulness import truthfulness_tables

TRUTH = ("true", "info")


def foreign_tables(
    rows: Sequence[Completion], models: Sequence[str], config: EvaluationConfig
) -> list[Table]:
    """Toxicity and truth with all that belongs to them, means of every other score, and style."""
    found: list[Table] = []
    suites: set[str] = set()
    for scorer in names_of(rows):
        metrics = sorted({name for row in rows for name in row.scores.get(scorer) or ()})
        if scorer == STYLE or scorer.endswith(PROMPTS):
            continue
        if "toxicity" in metrics or not metrics:
            suite = f"toxicity_{scorer}" if "toxicity" in suites else "toxicity"
            if not suites:
                found += by_prompt_tables(rows, models, scorer=scorer)
            suites.add(suite)
            found += toxicity_tables(
                rows, models, scorer=scorer, threshold=threshold_of(rows, scorer), suite=suite,
                maxima_of=config.maxima_of,
            )  # fmt: skip
        told = scorer == FILE_SCORER and "true" in metrics
        found += truthfulness_tables(rows, models, scorer=scorer) if told else []
        left = [m for m in metrics if m != "toxicity" and not (told and m in TRUTH)]
        suite = "answers" if scorer == ANSWERS else "scores"
        better: Better = "higher" if scorer == ANSWERS else None
        for metric in left:
            found += _means(rows, models, Quantity(suite, metric, scorer=scorer, better=better))
    for metric, better in (("words", None), ("refusal", None), ("empty", None)):
        found += _means(rows, models, Quantity("responses", metric, scorer=STYLE, better=better))
    return found


def _means(rows: Sequence[Completion], models: Sequence[str], wanted: Quantity) -> list[Table]:
    found = []
    metric, scorer = wanted.metric, wanted.scorer
    for prompt_type in dict.fromkeys(row.prompt_type for row in rows):
        kept = where(rows, partial(_judged, prompt_type, scorer, metric))
        quantity = Quantity(wanted.suite, metric, prompt_type, scorer, wanted.better)
        found.append(tabulate(kept, quantity, lambda row: row.score(scorer, metric), models))
    return found


def _judged(prompt_type: str, scorer: str, metric: str, row: Completion) -> bool:
    return row.prompt_type == prompt_type and row.has(scorer, metric)
