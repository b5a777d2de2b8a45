"""The preference suite: who says which response is better, and what that comes to."""

from collections.abc import Sequence

from pipeline.config.evaluation import EvaluationConfig
from pipeline.evaluation.generate import TEST
from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.samples.tables import Table
from pipeline.evaluation.scorers.gold import GOLD, GoldScorer
from pipeline.evaluation.scorers.llm_judge import JUDGE, judge_tables
from pipeline.evaluation.scorers.reward_model import REWARD, RewardScorer
from pipeline.evaluation.scorers.scorer import Scorer
from pipeline.evaluation.suites.benchmarks import served_judges
from pipeline.evaluation.suites.suite import Inputs
from pipeline.evaluation.win_rates import (
    at_equal_length,
    length_refusals,
    mean_tables,
    win_rate_tables,
)
from pipeline.models.prompting import prompted_policy


def preference_scorers(inputs: Inputs) -> list[Scorer]:
    """The gold judge where it has a say, and the reward model where there is one."""
    found: list[Scorer] = [GoldScorer(), *served_judges(inputs)]
    if inputs.reward_model is not None:
        size = inputs.config.sampling.batch_size
        policies = [prompted_policy(source).weights for source in inputs.policies.values()]
        found.append(RewardScorer(inputs.reward_model, policies, size))
    return found


def preference_tables(
    rows: Sequence[Completion], models: Sequence[str], config: EvaluationConfig
) -> list[Table]:
    """Win rates against the baseline and mean scores, by the gold judge and the reward model."""
    tested = [row for row in rows if row.suite == TEST]
    marked = [row for row in tested if row.has(GOLD, "gold")]
    rewarded = [row for row in tested if row.has(REWARD, "score")]
    found: list[Table] = []
    for kept, scorer, metric, suite in (
        (marked, GOLD, "gold", "preference"),
        (rewarded, REWARD, "score", "preference_by_reward_model"),
    ):
        won = win_rate_tables(
            kept, models, baseline=config.baseline, scorer=scorer, metric=metric, suite=suite,
            tie=config.tie,
        )  # fmt: skip
        found += won + (at_equal_length(kept, won[0], config.baseline) if kept else [])
    for kept, scorer, metric, suite in (
        (marked, GOLD, "gold", "use_cases"),
        (marked, GOLD, "correct", "use_cases"),
        (rewarded, REWARD, "score", "reward_model"),
    ):
        found += mean_tables(kept, models, scorer=scorer, metric=metric, suite=suite)
    for judge in _served(tested):
        found += judge_tables(tested, models, scorer=judge, baseline=config.baseline)
    return found


def _served(rows: Sequence[Completion]) -> list[str]:
    """The language models that judged these rows."""
    names = dict.fromkeys(name for row in rows for name in row.scores)
    return [name for name in names if name.startswith(JUDGE)]


def preference_notes(rows: Sequence[Completion], config: EvaluationConfig) -> list[str]:
    """What must be said about who preferred, and what length forbids to say."""
    models = list(dict.fromkeys(row.model for row in rows))
    notes = length_refusals(preference_tables(rows, models, config), config.baseline)
    if any(row.has(REWARD, "score") for row in rows):
        notes.append("the reward model is what PPO was trained on; its win rates are no evidence")
    if any(row.has(GOLD, "gold") for row in rows):
        notes.append("prompts and texts are synthetic; the gold judge is true by construction")
    return notes
