"""The toxicity suite: what its scored rows come to."""

from collections.abc import Sequence

from pipeline.config.evaluation import (
    ClassifierConfig,
    EvaluationConfig,
    ProfanityConfig,
    ToxicityScorerConfig,
)
from pipeline.evaluation.generate import TOXICITY
from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.samples.tables import Quantity, Table, tabulate
from pipeline.evaluation.scorers.gold import GOLD, GoldScorer
from pipeline.evaluation.scorers.scorer import Scorer
from pipeline.evaluation.scorers.served import GUARD
from pipeline.evaluation.scorers.toxicity import DEFAULT_THRESHOLD, ProfanityScorer, toxicity_tables
from pipeline.evaluation.scorers.wording import abstains
from pipeline.evaluation.suites.benchmarks import served_safety
from pipeline.evaluation.suites.by_prompt import PROMPTS, PromptToxicity, by_prompt_tables
from pipeline.evaluation.suites.suite import Inputs


def toxicity_judges(config: EvaluationConfig) -> list[Scorer]:
    """The classifiers that the config names; raises ValueError where one is not to be had."""
    return [_judge(each) for each in config.toxicity_scorers]


def _judge(chosen: ToxicityScorerConfig) -> Scorer:
    match chosen:
        case ProfanityConfig():
            return ProfanityScorer()
        case ClassifierConfig():
            from pipeline.evaluation.scorers.classifier import ToxicityClassifier

            return ToxicityClassifier(chosen)


def toxicity_scorers(inputs: Inputs) -> list[Scorer]:
    """The chosen classifiers, the gold judge's own word list, and what is served."""
    judges = toxicity_judges(inputs.config)
    served = served_safety(inputs)
    return [GoldScorer(), *judges, *served, *(PromptToxicity(first) for first in judges[:1])]


def toxicity_suite_tables(
    rows: Sequence[Completion], models: Sequence[str], config: EvaluationConfig
) -> list[Table]:
    """Means, rates and maxima of the answers to toxicity prompts, by instruction."""
    provoked = [row for row in rows if row.suite == TOXICITY]
    found: list[Table] = []
    for place, (scorer, metric) in enumerate(_judged(provoked)):
        suite = f"{TOXICITY}_{scorer}" if place else TOXICITY  # the first one is the headline
        found += toxicity_tables(
            provoked, models, scorer=scorer, metric=metric, suite=suite,
            threshold=threshold_of(provoked, scorer), maxima_of=config.maxima_of,
        )  # fmt: skip
        if not place:
            found += by_prompt_tables(provoked, models, scorer=scorer, metric=metric)
    return found + _rude(provoked, models) + _style(provoked, models)


def _style(rows: Sequence[Completion], models: Sequence[str]) -> list[Table]:
    """Length and refusals under each instruction: both lower toxicity without any merit."""
    found = []
    for kind in dict.fromkeys(row.prompt_type for row in rows):
        kept = [row for row in rows if row.prompt_type == kind]
        for metric, scorer, of in (
            ("tokens", "counting", lambda row: _tokens(row)),
            ("refusal", "phrases", lambda row: float(abstains(row.completion))),
        ):
            quantity = Quantity("responses", metric, kind, scorer)
            found.append(tabulate(kept, quantity, of, models))
    return found


def _tokens(row: Completion) -> float | None:
    return None if row.n_tokens is None else float(row.n_tokens)


def _judged(rows: Sequence[Completion]) -> list[tuple[str, str]]:
    """Who judged these rows, with the metric of each: a guard's is not toxicity."""
    every = dict.fromkeys(name for row in rows for name in row.scores)
    names = [name for name in every if name != GOLD and not name.endswith(PROMPTS)]
    return [(name, "unsafe" if name.startswith(GUARD) else "toxicity") for name in names]


def threshold_of(rows: Sequence[Completion], scorer: str) -> float:
    """Where the scorer's rows say that it counts as positive."""
    for row in rows:
        threshold = row.score_meta.get(scorer, {}).get("threshold")
        if threshold is not None:
            return float(threshold)
    return DEFAULT_THRESHOLD


def _rude(rows: Sequence[Completion], models: Sequence[str]) -> list[Table]:
    """The judge's own word list, beside the classifier that knows nothing of the world."""
    return [
        tabulate(
            [row for row in rows if row.prompt_type == kind and row.has(GOLD, "rude")],
            Quantity(TOXICITY, "rude_share", kind, GOLD, "lower"),
            lambda row: row.score(GOLD, "rude"),
            models,
        )
        for kind in dict.fromkeys(row.prompt_type for row in rows)
    ]
