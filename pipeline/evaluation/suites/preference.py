"""Preference, prompt by prompt: win rates by any score that each response has, and mean scores.

A win rate by the gold judge is evidence. One by the reward model is not: PPO was trained on it.
"""

import hashlib
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from sklearn.linear_model import LogisticRegression

from pipeline.config.evaluation import EvaluationConfig
from pipeline.evaluation import statistics
from pipeline.evaluation.generate import TEST
from pipeline.evaluation.samples.records import Bools, Completion, ScoredRows, Scores
from pipeline.evaluation.samples.tables import Quantity, Table, score_table, tabulate
from pipeline.evaluation.scorers.endpoint import Endpoint
from pipeline.evaluation.scorers.gold import GOLD, GoldScorer
from pipeline.evaluation.scorers.scorer import Scorer
from pipeline.evaluation.scorers.served import JUDGE, PairJudge
from pipeline.evaluation.suites.suite import Inputs, Suite
from pipeline.models.prompting import prompted_policy
from pipeline.runs.manifest import content_hash
from reward_models.intervals import Floats
from reward_models.records import Prompt
from stages.generation.classifier import SequenceClassifier
from stages.generation.score import load_scorer, require_readable, score_responses
from stages.models import device, load_tokenizer
from stages.precision import inference_weights

SUITE: Final = "preference"
BY_LLM = "preference_by_llm"
REWARD = "reward model"
EXTREMES = (0.15, 0.85)  # raw win rates outside of which length is not controlled for
NEAR = 0.1  # of the baseline's length: so close are lengths called equal
_TIE = 1e-6  # scores this close are a tie
_FEWEST = 20  # prompts of equal length below which their win rate is refused


def preference_scorers(inputs: Inputs) -> list[Scorer]:
    """Return the gold judge where it applies, a served judge, and the reward model."""
    config, scorers = inputs.config, list[Scorer]([GoldScorer()])
    if config.judge is not None:
        endpoint = Endpoint(config.judge)
        endpoint.check()
        scorers.append(PairJudge(endpoint, config.baseline))
    if inputs.reward_model is not None:
        policies = [prompted_policy(source).weights for source in inputs.policies.values()]
        scorers.append(RewardScorer(inputs.reward_model, policies, config.sampling.batch_size))
    return scorers


def preference_tables(
    rows: ScoredRows, models: Sequence[str], config: EvaluationConfig
) -> list[Table]:
    """Return win rates against the baseline and mean scores, by gold judge and reward model."""
    rows = rows.of_suite(TEST.name)
    gold, rewarded = rows.judged(GOLD, "gold"), rows.judged(REWARD, "score")
    tables: list[Table] = []
    for part, scorer, metric, suite in (
        (gold, GOLD, "gold", SUITE),
        (rewarded, REWARD, "score", "preference_by_reward_model"),
    ):
        quantity = Quantity(suite, "win_rate", scorer=scorer, better="higher")
        won = win_rate_tables(part, models, quantity, metric, config.baseline)
        tables += won + (at_equal_length(part, won[0], config.baseline) if len(part) else [])
    for part, scorer, metric, suite in (
        (gold, GOLD, "gold", "use_cases"),
        (gold, GOLD, "correct", "use_cases"),
        (rewarded, REWARD, "score", "reward_model"),
    ):
        for category, subset in by_category(part):
            quantity = Quantity(suite, metric, category, scorer, "higher")
            tables.append(score_table(subset, quantity, models))
    for scorer in rows.scorers:
        if scorer.startswith(JUDGE):
            tables += judge_tables(rows, models, scorer=scorer, baseline=config.baseline)
    return tables


def preference_notes(rows: ScoredRows, config: EvaluationConfig) -> list[str]:
    """Return caveats about the judges, and win rates refused at equal length."""
    models = list(dict.fromkeys(rows.fields["model"]))
    notes = length_refusals(preference_tables(rows, models, config), config.baseline)
    if rows.has(REWARD, "score").any():
        notes.append("the reward model is what PPO was trained on; its win rates are no evidence")
    if rows.has(GOLD, "gold").any():
        notes.append("prompts and texts are synthetic; the gold judge is true by construction")
    return notes


def by_category(rows: ScoredRows) -> Iterator[tuple[str, ScoredRows]]:
    """Yield all rows, then those of each category (use case) that there is."""
    yield "all", rows
    for category in sorted({name for name in rows.fields["category"] if name}):
        yield category, rows.where(rows.fields["category"] == category)


def win_rate_tables(
    rows: ScoredRows, models: Sequence[str], quantity: Quantity, metric: str, baseline: str
) -> list[Table]:
    """Return the share of prompts where each model beats the baseline, over all and by category.

    With several samples a prompt, every pair of samples counts, ties half. The baseline's own
    column is .5.
    """
    return [
        _win_rates(part, models, replace(quantity, filter=category), metric, baseline)
        for category, part in by_category(rows)
    ]


def _win_rates(
    rows: ScoredRows, models: Sequence[str], quantity: Quantity, metric: str, baseline: str
) -> Table:
    score_S = rows.score(quantity.scorer, metric)
    averages = tabulate(rows, quantity, score_S, models)  # for its counts
    scores = {
        key: part.dropna().to_numpy()
        for key, part in rows.fields[["id", "model"]]
        .assign(score=score_S)
        .groupby(["id", "model"])["score"]
    }
    nothing = np.empty(0)
    value_NM = np.full(averages.value_NM.shape, np.nan)
    for n, prompt in enumerate(sorted(set(rows.fields["id"]))):
        against_K = scores.get((prompt, baseline), nothing)
        for m, model in enumerate(models):
            score_K = scores.get((prompt, model), nothing)
            if against_K.size and score_K.size:
                won = statistics.win_share(score_K, against_K, _TIE)
                value_NM[n, m] = 0.5 if model == baseline else won
    return replace(averages, value_NM=value_NM)


def at_equal_length(rows: ScoredRows, won: Table, baseline: str) -> list[Table]:
    """Return the win rates of `won` controlled for length, and of pairs of about equal length.

    A column is NaN where the raw rate is extreme, or where too few pairs are equally long.
    """
    length_NM = tabulate(rows, won.quantity, _length(rows), won.models).value_NM
    base = won.models.index(baseline)
    controlled_NM = np.full(won.value_NM.shape, np.nan)
    matched_NM = controlled_NM.copy()
    for m in (m for m in range(len(won.models)) if m != base):
        win_N, length_N, other_N = won.value_NM[:, m], length_NM[:, m], length_NM[:, base]
        has_N = np.isfinite(win_N + length_N + other_N)
        win_N, length_N, other_N = win_N[has_N], length_N[has_N], other_N[has_N]
        controlled_NM[has_N, m] = length_controlled(win_N, length_N - other_N)
        matched_NM[has_N, m] = length_matched(win_N, length_N, other_N)
    return [
        replace(
            won,
            quantity=replace(won.quantity, metric=metric),
            value_NM=value_NM,
            samples_M=tuple(np.isfinite(value_NM).sum(axis=0).tolist()),
            failed_M=(0,) * len(won.models),
        )
        for metric, value_NM in (
            ("win_rate_length_controlled", controlled_NM),
            ("win_rate_length_matched", matched_NM),
        )
    ]


def _length(rows: ScoredRows) -> Floats:
    """In tokens where they were counted, else in words."""
    words_S = np.array([float(len(text.split())) for text in rows.fields["completion"]])
    tokens_S = rows.number("n_tokens")
    return np.where(np.isnan(tokens_S), words_S, tokens_S)


def length_controlled(win_N: Floats, gap_N: Floats) -> Floats:
    """Return a value a prompt whose mean is the win rate at equal length; NaN if it is refused.

    `win_N` is in 0..1 with ties one half, `gap_N` the difference in length from the baseline. The
    wins are regressed on tanh of the gap, with a prior on the slope.
    """
    rate = float(win_N.mean()) if win_N.size else math.nan
    if not EXTREMES[0] <= rate <= EXTREMES[1]:
        return np.full(win_N.shape, math.nan)
    spread = float(gap_N.std())
    pull_N1 = (np.tanh(gap_N / spread) if spread > 0 else np.zeros(gap_N.shape))[:, None]
    # A tie is half a win and half a loss.
    model = LogisticRegression(solver="newton-cholesky", tol=1e-10)
    outcome = np.repeat([1, 0], len(win_N))
    model.fit(np.tile(pull_N1, (2, 1)), outcome, sample_weight=np.append(win_N, 1 - win_N))
    fitted_N = model.predict_proba(pull_N1)[:, 1]
    controlled_N: Floats = win_N - fitted_N + model.predict_proba([[0.0]])[0, 1]
    return controlled_N


def length_matched(win_N: Floats, length_N: Floats, other_N: Floats) -> Floats:
    """Return `win_N` where both responses are about equally long, else NaN; all if too few are."""
    near_N: Bools = np.abs(length_N - other_N) <= NEAR * other_N
    if near_N.sum() < _FEWEST:
        return np.full(win_N.shape, math.nan)
    return np.where(near_N, win_N, math.nan)


def length_refusals(tables: Sequence[Table], baseline: str) -> list[str]:
    """Return a sentence for each win rate whose value at equal length is not given."""
    raw = {
        table.quantity.suite: table
        for table in tables
        if (table.quantity.metric, table.quantity.filter) == ("win_rate", "all")
        and table.quantity.suite != BY_LLM
        and table.value_NM.size
    }
    return [
        f"{suite}: {model} has no win rate at equal length, since its raw rate is "
        f"{rate:.0%}, outside {EXTREMES[0]:.0%} to {EXTREMES[1]:.0%}"
        for suite, table in raw.items()
        for model, rate in zip(table.models, np.nanmean(table.value_NM, axis=0), strict=True)
        if model != baseline and not EXTREMES[0] <= rate <= EXTREMES[1]
    ]


def judge_tables(
    rows: ScoredRows, models: Sequence[str], *, scorer: str, baseline: str
) -> list[Table]:
    """Return a served judge's win rates, and how often the position decided."""
    compared = [model for model in models if model != baseline]
    judged = rows.judged(scorer, "win")
    judged = judged.where(judged.fields["model"] != baseline)
    tables = []
    for category, part in by_category(judged):
        quantity = Quantity(BY_LLM, "win_rate", category, scorer, "higher")
        tables.append(score_table(part, quantity, compared, "win"))
    followed = Quantity(BY_LLM, "followed_position", "all", scorer, "lower")
    return [*tables, score_table(judged, followed, compared)]


class RewardScorer:
    """Scores of a reward model for the responses of policies that it can read."""

    name, threshold = REWARD, None

    def __init__(
        self, source: str | Path, policies: Collection[str | Path], batch_size: int = 64
    ) -> None:
        """Load the model; raise ValueError where it scores token ids that a policy has not."""
        self.model = load_scorer(source, weights=inference_weights()).to(device())
        self.source, self.batch_size = source, batch_size
        for policy in policies:
            self.tokenizer = load_tokenizer(policy)
            require_readable(self.model, self.tokenizer, policy)

    @property
    def version(self) -> str:
        """The kind of labels it was trained on; of another library's model, its name."""
        if isinstance(self.model, SequenceClassifier):
            return self.model.source
        return " and ".join(self.model.card.label_kinds) + " labels"

    @cached_property
    def sha256(self) -> str:
        """The hash of its files and their names; of a model on the hub, its name and commit."""
        if not Path(self.source).is_dir():
            return content_hash(self.source)
        digest = hashlib.sha256()
        for path in sorted(Path(self.source).rglob("*")):
            if path.is_file():
                digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    def score(self, rows: Sequence[Completion]) -> list[Scores]:
        """Return `score` of each response; an unfinished one is scored without EOS."""
        scores = score_responses(
            self.model,
            self.tokenizer,
            [Prompt(row.prompt, context=row.context, history=row.history) for row in rows],
            [row.completion for row in rows],
            batch_size=self.batch_size,
            ended=[row.ended for row in rows],
        )
        return [{"score": score} for score in scores]


PREFERENCE = Suite(SUITE, TEST, preference_tables, preference_scorers, preference_notes)
