"""What annotators said, as evaluation: win rates by their rankings, ratings, and flags.

This is the paper's own measure (sections 3.6 and 4.1, table 3): preference, a Likert score from 1
to 7, and yes-or-no questions about each output, of which "hallucination" is asked on closed-domain
tasks. Each row is one response in the eyes of one annotator; the prompt is the unit, so responses
and annotators of one prompt are averaged first. How far annotators agree is said beside it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from pipeline.evaluation.samples.alignment import matched_pairs
from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.samples.results import Results, results_of, write_results
from pipeline.evaluation.samples.tables import Better, Quantity, Resampling, Table, tabulate
from reward_models.atomic_files import write_jsonl
from reward_models.records import Ranking, RankingTask

SUITE = "human_labels"
RATING, WIN = "rating", "win_rate"
WELCOME = {"satisfies_constraint"}  # of the paper's flags, that where yes is the good answer
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
        [table for table in label_tables(rows, models) if table.value_NM.size],
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
    """One row a ranking and response, with what its annotator said about it as scores."""
    by_id = {task.id: task for task in tasks}
    asked = sorted({flag for each in rankings for flags in each.flags.values() for flag in flags})
    taken: dict[tuple[str, str], int] = {}
    for ranking in rankings:
        task = by_id[ranking.task]
        against = [r.id for r in task.responses if r.model == baseline]
        for response in task.responses:
            name = (task.id, response.model)
            taken[name] = taken.get(name, -1) + 1
            scores = _said(ranking, response.id, asked)
            if against:  # the baseline against itself is one half by definition
                mine = response.model == baseline
                scores[WIN] = 0.5 if mine else _won(ranking.ranks, response.id, against)
            yield Completion(
                id=task.id,
                model=response.model,
                prompt=task.prompt,
                completion=response.text,
                suite=SUITE,
                k=taken[name],
                context=task.context,
                category=task.category,
                history=task.history,
                prompt_extra={"annotator": ranking.annotator},
                scores={SUITE: scores},
            )


def label_tables(rows: Sequence[Completion], models: Sequence[str]) -> list[Table]:
    """For each question: the mean over prompts of its mean over responses and annotators."""
    metrics = sorted({metric for row in rows for metric in row.scores[SUITE] or ()})
    order = [m for m in (WIN, RATING) if m in metrics]
    found = []
    for metric in [*order, *(m for m in metrics if m not in order)]:
        kept = [row for row in rows if row.has(SUITE, metric)]
        quantity = Quantity(SUITE, metric, scorer=SUITE, better=_better(metric))
        found.append(tabulate(kept, quantity, _score_of(metric), models))
    return found


def agreement_notes(rankings: Sequence[Ranking], seed: int) -> list[str]:
    """How far those agree who ranked the same outputs; that they are programs, where they are."""
    notes = []
    kinds = sorted({each.kind for each in rankings} - {"human"})
    if kinds:
        notes.append(f"labels are {' and '.join(kinds)}; nothing here says what people like")
    pairs = list(overlaps(rankings))
    if not pairs:
        return [*notes, "nobody ranked what another had ranked: agreement is unknown"]
    found = agreement(pairs, np.random.default_rng(seed))
    if found.value is not None and found.low is not None and found.high is not None:
        notes.append(
            f"two annotators order {found.value:.1%} of {found.num_pairs} pairs alike "
            f"({found.low:.1%} to {found.high:.1%}; {found.num_prompts} tasks); the paper's: 72.6 %"
        )
    tau = mean_tau_b(pairs)
    notes += [] if tau is None else [f"mean tau-b of two rankings: {tau:.2f}"]
    flags = sorted({flag for each in rankings for names in each.flags.values() for flag in names})
    alphas = {"rating": alpha(rating_units(rankings), "ordinal")}
    alphas |= {flag: alpha(flag_units(rankings, flag), "nominal") for flag in flags}
    told = ", ".join(f"{name} {value:.2f}" for name, value in alphas.items() if value is not None)
    return [*notes, f"Krippendorff's alpha: {told}"] if told else notes


def _said(ranking: Ranking, response: str, asked: Sequence[str]) -> dict[str, float | None]:
    """The rating, and for each flag yes or no; what was not answered is left out."""
    scores: dict[str, float | None] = {}
    if response in ranking.ratings:
        scores[RATING] = float(ranking.ratings[response])
    yes = ranking.flags.get(response, ())
    no = ranking.extra.get("flags_no")
    for flag in asked:
        if flag in yes:
            scores[flag] = 1.0
        elif no is None or flag in no.get(response, ()):
            scores[flag] = 0.0
    return scores


def _won(ranks: Mapping[str, int], mine: str, against: Sequence[str]) -> float:
    """Share of the baseline's responses that are ranked below this one, ties one half."""
    gaps = [ranks[other] - ranks[mine] for other in against]
    return sum(1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps) / len(gaps)


def _better(metric: str) -> Better:
    if metric in NEUTRAL:
        return None
    return "higher" if metric in {WIN, RATING} | WELCOME else "lower"


def _score_of(metric: str) -> Callable[[Completion], float | None]:
    return lambda row: row.score(SUITE, metric)


def _identity(rankings: Sequence[Ranking]) -> Mapping[str, object]:
    names = sorted({each.annotator for each in rankings})
    kinds = " and ".join(sorted({each.kind for each in rankings}))
    return {"version": f"{len(names)} annotators, {kinds} labels", "sha256": "", "threshold": None}
