"""Human labels as evaluation: win rates by annotators' rankings, ratings, and flags.

This is the paper's own measure (sections 3.6 and 4.1, table 3): preference, a Likert score from 1
to 7, and yes-or-no questions about each output, of which "hallucination" is asked on closed-domain
tasks. Each row is one response judged by one annotator; the prompt is the unit, so responses and
annotators of one prompt are averaged first. Their agreement is noted beside it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from labeling_ui.reports.agreement import (
    agreement,
    alpha,
    flag_units,
    mean_tau_b,
    overlaps,
    rating_units,
)
from pipeline.config.evaluation import EvaluationConfig
from pipeline.evaluation.evaluate import RESULTS, SAMPLES
from pipeline.evaluation.samples.records import Completion, ScoredRows
from pipeline.evaluation.samples.results import Results, results_of, write_results
from pipeline.evaluation.samples.tables import (
    Better,
    Quantity,
    Resampling,
    Table,
    matched_pairs,
    score_table,
)
from reward_models.atomic_files import write_jsonl
from reward_models.records import Ranking, RankingTask

SUITE = "human_labels"
RATING, WIN = "rating", "win_rate"
POSITIVE = {"satisfies_constraint"}  # of the paper's flags, that where yes is the good answer
NEUTRAL = {"opinion", "moral_judgement"}


def score_labels(
    tasks: Sequence[RankingTask],
    rankings: Sequence[Ranking],
    *,
    out: Path,
    against: Sequence[str] = (),
    config: EvaluationConfig,
    seed: int = 0,
) -> Results:
    """Win rates, ratings and flags by model; write out/samples.jsonl and out/results.json.

    Win rates are against `config.baseline`, where it is one of the models. Raises ValueError if
    nothing was ranked.
    """
    ranked = [each for each in rankings if each.skipped is None]
    rows = list(label_rows(tasks, ranked, config.baseline))
    if not rows:
        raise ValueError("no ranking in it; nothing to judge by")
    models = list(dict.fromkeys(row.model for row in rows))
    results = results_of(
        label_tables(ScoredRows.of(rows), models),
        matched_pairs(models, against),
        Resampling(config.resamples, config.sign_flips, seed),
        scorers={SUITE: _identity(ranked)},
        notes=agreement_notes(ranked, seed),
        about={"baseline": config.baseline if config.baseline in models else "", "seed": seed},
    )
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(out / SAMPLES, (row.to_json() for row in rows))
    write_results(results, out / RESULTS)
    return results


def label_rows(
    tasks: Sequence[RankingTask], rankings: Sequence[Ranking], baseline: str
) -> Iterator[Completion]:
    """Yield a row for each ranking and response, with its annotator's labels as scores."""
    by_id = {task.id: task for task in tasks}
    flags = sorted({flag for each in rankings for names in each.flags.values() for flag in names})
    count: Counter[tuple[str, str]] = Counter()
    for ranking in rankings:
        task = by_id[ranking.task]
        against = [r.id for r in task.responses if r.model == baseline]
        for response in task.responses:
            scores = _scores(ranking, response.id, flags)
            if against:  # the baseline against itself is one half by definition
                is_baseline = response.model == baseline
                scores[WIN] = 0.5 if is_baseline else _won(ranking.ranks, response.id, against)
            yield Completion(
                id=task.id,
                model=response.model,
                prompt=task.prompt,
                completion=response.text,
                suite=SUITE,
                k=count[task.id, response.model],
                context=task.context,
                category=task.category,
                history=task.history,
                prompt_extra={"annotator": ranking.annotator},
                scores={SUITE: scores},
            )
            count[task.id, response.model] += 1


def label_tables(rows: ScoredRows, models: Sequence[str]) -> list[Table]:
    """Return for each question the mean over prompts of its mean over responses and annotators."""
    metrics = rows.metrics(SUITE)
    return [
        score_table(rows, Quantity(SUITE, metric, scorer=SUITE, better=_better(metric)), models)
        for metric in sorted(metrics, key=lambda name: (name != WIN, name != RATING))
    ]


def agreement_notes(rankings: Sequence[Ranking], seed: int) -> list[str]:
    """Return the agreement of those who ranked the same outputs, and a caveat about programs."""
    notes = []
    kinds = sorted({each.kind for each in rankings} - {"human"})
    if kinds:
        notes.append(f"labels are {' and '.join(kinds)}; nothing here says what people like")
    pairs = list(overlaps(rankings))
    if not pairs:
        return [*notes, "no task was ranked twice: agreement is unknown"]
    rate = agreement(pairs, np.random.default_rng(seed))
    if rate.value is not None:
        notes.append(
            f"two annotators order {rate.value:.1%} of {rate.num_pairs} pairs alike "
            f"({rate.low:.1%} to {rate.high:.1%}; {rate.num_prompts} tasks); the paper's: 72.6 %"
        )
    tau = mean_tau_b(pairs)
    notes += [] if tau is None else [f"mean tau-b of two rankings: {tau:.2f}"]
    flags = sorted({flag for each in rankings for names in each.flags.values() for flag in names})
    alphas = {"rating": alpha(rating_units(rankings), "ordinal")}
    alphas |= {flag: alpha(flag_units(rankings, flag), "nominal") for flag in flags}
    values = ", ".join(f"{name} {value:.2f}" for name, value in alphas.items() if value is not None)
    return [*notes, f"Krippendorff's alpha: {values}"] if values else notes


def _scores(ranking: Ranking, response: str, flags: Sequence[str]) -> dict[str, float | None]:
    """The rating, and for each flag yes or no; what was not answered is left out."""
    scores: dict[str, float | None] = {}
    if response in ranking.ratings:
        scores[RATING] = float(ranking.ratings[response])
    yes = ranking.flags.get(response, ())
    no = ranking.extra.get("flags_no")
    for flag in flags:
        if flag in yes:
            scores[flag] = 1.0
        elif no is None or flag in no.get(response, ()):
            scores[flag] = 0.0
    return scores


def _won(ranks: Mapping[str, int], response: str, against: Sequence[str]) -> float:
    """Share of the baseline's responses that are ranked below this one, ties one half."""
    gaps = [ranks[other] - ranks[response] for other in against]
    return sum(1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps) / len(gaps)


def _better(metric: str) -> Better:
    if metric in NEUTRAL:
        return None
    return "higher" if metric in {WIN, RATING} | POSITIVE else "lower"


def _identity(rankings: Sequence[Ranking]) -> Mapping[str, object]:
    names = sorted({each.annotator for each in rankings})
    kinds = " and ".join(sorted({each.kind for each in rankings}))
    return {"version": f"{len(names)} annotators, {kinds} labels", "sha256": "", "threshold": None}
