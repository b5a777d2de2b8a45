"""Every policy answers the held-out prompts; scorers judge; the numbers go to results.json.

samples.jsonl   one completion a line, with the scores of every scorer
results.json    cells with intervals, paired comparisons, scorers and their hashes
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.generate import generate_completions
from pipeline.evaluation.gold import GOLD, GoldScorer, judged
from pipeline.evaluation.hallucination import LexicalSupport, hallucination_tables
from pipeline.evaluation.preference import mean_tables, win_rate_tables
from pipeline.evaluation.pretraining_loss import pretraining_table
from pipeline.evaluation.responses import response_tables
from pipeline.evaluation.results import Results, check_failures, results_of, scorer_identities
from pipeline.evaluation.results_file import write_results
from pipeline.evaluation.reward_scorer import REWARD, RewardScorer
from pipeline.evaluation.samples import Completion
from pipeline.evaluation.scorers import Scorer, scored
from pipeline.evaluation.tables import Quantity, Resampling, Table, tabulate
from pipeline.evaluation.toxicity import PROFANITY, ProfanityScorer, toxicity_tables
from reward_models.records import Prompt, write_jsonl
from stages.progress import Report, Step

TEST, TOXICITY = "test", "toxicity"


def evaluate_policies(
    config: EvaluationConfig,
    *,
    policies: Mapping[str, str | Path],
    reward_model: Path | None,
    prompts: Sequence[Prompt],
    toxicity_prompts: Sequence[Prompt],
    held_out_texts: Sequence[str],
    out: Path,
    seed: int,
    report: Report,
) -> Results:
    """Generate, score and compare; write out/samples.jsonl and out/results.json.

    The gold judge scores prompts of the quickstart's world. Without a reward model, toxicity
    prompts or held-out texts, what needs them is left out. Raises ValueError if the baseline is not
    among the policies and, after writing, if too many rows could not be scored.
    """
    if config.baseline not in policies:
        raise ValueError(
            f"evaluation.baseline is '{config.baseline}'; expected one of {', '.join(policies)}"
        )
    rows = _scored_rows(config, policies, reward_model, prompts, toxicity_prompts, seed, report)
    tables = _tables(config, list(policies), rows)
    if held_out_texts:
        tables.append(
            pretraining_table(
                policies,
                held_out_texts,
                max_tokens=config.max_pretraining_tokens,
                batch_size=config.sampling.batch_size,
            )
        )
    results = results_of(
        tables,
        _pairs(config, list(policies)),
        Resampling(config.resamples, config.sign_flips, seed),
        scorers=scorer_identities(rows),
        notes=_notes(config, rows),
        about=_about(config, list(policies), seed),
    )
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(out / "samples.jsonl", (row.to_json() for row in rows))
    write_results(results, out / "results.json")
    check_failures(results, config.max_failed)
    return results


def _scored_rows(
    config: EvaluationConfig,
    policies: Mapping[str, str | Path],
    reward_model: Path | None,
    prompts: Sequence[Prompt],
    toxicity_prompts: Sequence[Prompt],
    seed: int,
    report: Report,
) -> list[Completion]:
    """All completions with their scores; a tokenizer the reward model cannot read fails first."""
    per_prompt = len(config.instructions) * config.toxicity_samples
    first = len(prompts) * len(policies)
    total = first + len(toxicity_prompts) * per_prompt * len(policies)
    scorers: list[Scorer] = [ProfanityScorer(), LexicalSupport(config.closed_domain)]
    if reward_model is not None:
        size = config.sampling.batch_size
        scorers.append(RewardScorer(reward_model, list(policies.values()), size))
    tested = generate_completions(
        policies,
        prompts,
        suite=TEST,
        sampling=config.sampling,
        seed=seed,
        report=lambda step: report(Step(step.done, total)),
    )
    provoked = generate_completions(
        policies,
        toxicity_prompts,
        suite=TOXICITY,
        sampling=config.sampling,
        instructions=config.instructions,
        separator=config.separator,
        samples=config.toxicity_samples,
        seed=seed,
        report=lambda step: report(Step(first + step.done, total)),
    )
    gold: list[Scorer] = [GoldScorer()] if judged([*tested, *provoked]) else []
    return scored(tested, [*gold, *scorers]) + scored(provoked, [*gold, scorers[0]])


def _tables(
    config: EvaluationConfig, models: Sequence[str], rows: Sequence[Completion]
) -> list[Table]:
    tested = [row for row in rows if row.suite == TEST]
    provoked = [row for row in rows if row.suite == TOXICITY]
    marked = [row for row in tested if row.has(GOLD, "gold")]
    rewarded = [row for row in tested if row.has(REWARD, "score")]
    found: list[Table] = []
    for kept, scorer, metric, suite in (
        (marked, GOLD, "gold", "preference"),
        (rewarded, REWARD, "score", "preference_by_reward_model"),
    ):
        found += win_rate_tables(
            kept, models, baseline=config.baseline, scorer=scorer, metric=metric, suite=suite,
            tie=config.tie,
        )  # fmt: skip
    for kept, scorer, metric, suite in (
        (marked, GOLD, "gold", "use_cases"),
        (marked, GOLD, "correct", "use_cases"),
        (rewarded, REWARD, "score", "reward_model"),
    ):
        found += mean_tables(kept, models, scorer=scorer, metric=metric, suite=suite)
    found += hallucination_tables(tested, models, closed_domain=config.closed_domain)
    found += toxicity_tables(provoked, models, scorer=PROFANITY)
    found += _rude(provoked, models)
    found += response_tables(tested, models)
    return [table for table in found if table.value_NM.size]


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


def _pairs(config: EvaluationConfig, models: Sequence[str]) -> list[tuple[str, str]]:
    """Each later policy against each policy to compare with, in the order of training."""
    return [
        (model, other)
        for place, model in enumerate(models)
        for other in config.compare_with
        if other in models[:place]
    ]


def _notes(config: EvaluationConfig, rows: Sequence[Completion]) -> list[str]:
    notes = []
    if any(row.has(REWARD, "score") for row in rows):
        notes.append("the reward model is what PPO was trained on; its win rates are no evidence")
    if any(row.has(GOLD, "gold") for row in rows):
        notes.append("prompts and texts are synthetic; the gold judge is true by construction")
    elif any(row.category in config.closed_domain for row in rows):
        notes.append("hallucination is estimated by words alone and grows with abstraction")
    return notes


def _about(config: EvaluationConfig, models: Sequence[str], seed: int) -> dict[str, Any]:
    return {
        "policies": list(models),
        "baseline": config.baseline,
        "instructions": dict(config.instructions),
        "shown_samples": config.shown_samples,
        "seed": seed,
        "resamples": config.resamples,
        "sign_flips": config.sign_flips,
    }
