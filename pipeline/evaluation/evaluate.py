"""Policies answer held-out prompts, scorers judge them, and the numbers go to results.json.

samples.jsonl   one completion a line, with the scores of every scorer
results.json    cells with intervals, paired comparisons, scorers and their hashes

Three steps: `generate` writes the samples, `score_samples` has them judged, `results_from` uses
nothing but rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.config.evaluation import EvaluationConfig
from pipeline.evaluation.samples.records import Completion, ScoredRows
from pipeline.evaluation.samples.results import (
    Results,
    check_failures,
    results_of,
    write_results,
)
from pipeline.evaluation.samples.tables import Resampling
from pipeline.evaluation.scorers.scorer import Scorer, scored
from pipeline.evaluation.scorers.served import PairJudge
from pipeline.evaluation.suites.alignment_tax import TAX
from pipeline.evaluation.suites.bias import BIAS
from pipeline.evaluation.suites.hallucination import HALLUCINATION
from pipeline.evaluation.suites.preference import PREFERENCE
from pipeline.evaluation.suites.pretraining_loss import PRETRAINING
from pipeline.evaluation.suites.responses import RESPONSES
from pipeline.evaluation.suites.suite import Inputs, Suite, part_of
from pipeline.evaluation.suites.toxicity import TOXICITY
from pipeline.evaluation.suites.truthfulqa import TRUTHFULNESS
from pipeline.evaluation.validity import measured_validity, validity_notes
from pipeline.models.prompting import own_weights, prompting_notes
from reward_models.atomic_files import write_jsonl
from stages.precision import inference_precision
from stages.progress import Step

SUITES = (
    PREFERENCE,
    HALLUCINATION,
    TOXICITY,
    TRUTHFULNESS,
    BIAS,
    TAX,
    RESPONSES,
    PRETRAINING,
)
SAMPLE_KINDS = frozenset(suite.samples.name for suite in SUITES)
SAMPLES, RESULTS = "samples.jsonl", "results.json"


def evaluate(inputs: Inputs, out: Path) -> Results:
    """Generate, score and compare; write out/samples.jsonl and out/results.json.

    Suites that nobody named and whose inputs are not given are left out. Raises ValueError if the
    baseline is not among the policies, if a suite that was named has no inputs, and, after writing,
    if too many rows could not be scored.
    """
    config, models = inputs.config, list(inputs.policies)
    if config.baseline not in models:
        raise ValueError(
            f"evaluation.baseline is '{config.baseline}'; expected one of {', '.join(models)}"
        )
    scorers = scorers_of(inputs)  # first: a reward model of another tokenizer fails here
    rows = score_samples(generate(inputs, out), scorers)
    write_jsonl(out / SAMPLES, (row.to_json() for row in rows))
    columns = ScoredRows.of(rows)
    validity = measured_validity(columns, scorers, config)
    results = results_from(columns, config, inputs.seed, validity)
    judges = [one for each in scorers.values() for one in each if isinstance(one, PairJudge)]
    bills = [f"{judge.name}: {judge.bill}" for judge in judges]
    prompting = prompting_notes(inputs.policies)
    notes = [*results.notes, *circular_notes(inputs), *prompting, *bills]
    results = replace(results, notes=notes)
    write_results(results, out / RESULTS)
    check_failures(results, config.max_failed)
    return results


def circular_notes(inputs: Inputs) -> list[str]:
    """Return a warning for each classifier that is itself the reward PPO was trained on."""
    if inputs.reward_model is None:
        return []
    reward = Path(inputs.reward_model).resolve()
    return [
        f"{scorer.model} is also the reward that PPO was trained on; its toxicity is no evidence"
        for scorer in inputs.config.toxicity_scorers
        if scorer.kind == "classifier" and Path(scorer.model).resolve() == reward
    ]


def generate(inputs: Inputs, out: Path) -> list[Completion]:
    """Return the samples of the suites, also written to out/samples.jsonl, unscored."""
    suites = chosen(inputs.config)
    kinds = {suite.samples.name: suite for suite in reversed(suites)}
    order = dict.fromkeys(suite.samples.name for suite in suites)
    rows: list[Completion] = []
    for number, suite in enumerate(kinds[name] for name in order):
        samples, report = suite.samples, part_of(inputs.report, number, len(order))
        policies = own_weights(inputs.policies) if samples.likelihoods else inputs.policies
        with inference_precision(inputs.config.precision):
            generated = samples.generate(replace(inputs, policies=policies, report=report))
        if not generated and inputs.config.suites is not None:
            raise ValueError(f"suite {suite.name}: nothing to judge; it needs {samples.needs}")
        report(Step(1, 1))
        rows += generated
    if not rows:
        raise ValueError("nothing to judge: neither prompts nor texts were given")
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(out / SAMPLES, (row.to_json() for row in rows))
    return rows


def chosen(config: EvaluationConfig) -> list[Suite]:
    """Return the suites that the config names, in that order, or all."""
    suites = {suite.name: suite for suite in SUITES}
    return [suites[name] for name in config.suites or suites]


def scorers_of(inputs: Inputs) -> dict[str, list[Scorer]]:
    """Return the scorers of each kind of samples; each once, though several suites may name it."""
    scorers: dict[str, dict[str, Scorer]] = {}
    for suite in chosen(inputs.config):
        of_kind = scorers.setdefault(suite.samples.name, {})
        with inference_precision(inputs.config.precision):
            of_kind |= {scorer.name: scorer for scorer in suite.scorers(inputs)}
    return {kind: list(of_kind.values()) for kind, of_kind in scorers.items()}


def score_samples(
    rows: Sequence[Completion], scorers: Mapping[str, Sequence[Scorer]]
) -> list[Completion]:
    """Return the rows with the scores of their kind's scorers, in the order of kinds."""
    scored_rows: list[Completion] = []
    for kind in dict.fromkeys(map(kind_of, rows)):
        of_kind = [row for row in rows if kind_of(row) == kind]
        scored_rows += scored(of_kind, scorers.get(kind, ()))
    return scored_rows


def kind_of(row: Completion) -> str:
    """Return the kind of samples that a row belongs to; a data set's name may follow it."""
    return row.suite.partition(":")[0]


def results_from(
    rows: ScoredRows,
    config: EvaluationConfig,
    seed: int,
    validity: Mapping[str, Any] = MappingProxyType({}),
) -> Results:
    """Return all numbers, from nothing but scored rows and the scorers' measured validity."""
    models, suites = list(dict.fromkeys(rows.fields["model"])), chosen(config)
    notes = [note for suite in suites for note in suite.notes(rows, config)]
    return results_of(
        [table for suite in suites for table in suite.tables(rows, models, config)],
        pairs_of(config, models),
        Resampling(config.resamples, config.sign_flips, seed),
        scorers=rows.meta,
        notes=list(dict.fromkeys([*notes, *validity_notes(validity)])),
        about={**about_of(config, models, seed), **validity},
    )


def pairs_of(config: EvaluationConfig, models: Sequence[str]) -> list[tuple[str, str]]:
    """Return each later policy with each policy to compare with, in the order of training."""
    return [
        (model, other)
        for number, model in enumerate(models)
        for other in config.compare_with
        if other in models[:number]
    ]


def about_of(config: EvaluationConfig, models: Sequence[str], seed: int) -> dict[str, Any]:
    """Return what a report needs to know about an evaluation of policies."""
    return {
        "policies": list(models),
        "baseline": config.baseline,
        "instructions": dict(config.instructions),
        "shown_samples": config.shown_samples,
        "seed": seed,
        "resamples": config.resamples,
        "sign_flips": config.sign_flips,
    }
