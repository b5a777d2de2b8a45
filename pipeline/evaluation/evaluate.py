"""Every policy answers the held-out prompts; scorers judge; the numbers go to results.json.

samples.jsonl   one completion a line, with the scores of every scorer
results.json    cells with intervals, paired comparisons, scorers and their hashes

Three steps: `generate` writes the samples, `scored_rows` has them judged, `results_from` reads
nothing but rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.config.evaluation import EvaluationConfig, SuiteName
from pipeline.evaluation.generate import TEST, TOXICITY
from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.samples.results import (
    Results,
    check_failures,
    results_of,
    scorer_identities,
    write_results,
)
from pipeline.evaluation.samples.tables import Resampling
from pipeline.evaluation.scorers.scorer import Scorer, scored
from pipeline.evaluation.scorers.validity import measured_validity, validity_notes
from pipeline.evaluation.suites.order import SAID, SUITES
from pipeline.evaluation.suites.suite import Inputs
from pipeline.models.prompting import own_weights, prompting_notes
from reward_models.atomic_files import write_jsonl
from stages.progress import Report, Step

SAMPLES, RESULTS = "samples.jsonl", "results.json"
_PARTS = 1000  # steps of the progress of one kind of rows


def evaluate(inputs: Inputs, out: Path) -> Results:
    """Let policies speak, score and compare; write out/samples.jsonl and out/results.json.

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
    rows = scored_rows(generate(inputs, out), scorers)
    write_jsonl(out / SAMPLES, (row.to_json() for row in rows))
    everyone = {each.name: each for several in scorers.values() for each in several}
    measured = measured_validity(rows, list(everyone.values()), config)
    results = results_from(rows, config, inputs.seed, measured)
    said = [*circular_notes(inputs), *prompting_notes(inputs.policies)]
    results = replace(results, notes=[*results.notes, *said])
    write_results(results, out / RESULTS)
    check_failures(results, config.max_failed)
    return results


def circular_notes(inputs: Inputs) -> list[str]:
    """A warning for each classifier that is itself the reward: PPO was trained to please it."""
    if inputs.reward_model is None:
        return []
    reward = inputs.reward_model.resolve()
    return [
        f"{chosen.model} is also the reward that PPO was trained on; its toxicity is no evidence"
        for chosen in inputs.config.toxicity_scorers
        if chosen.kind == "classifier" and Path(chosen.model).resolve() == reward
    ]


def generate(inputs: Inputs, out: Path) -> list[Completion]:
    """What policies say for the chosen suites, also written to out/samples.jsonl, unscored."""
    needed = list(dict.fromkeys(SUITES[name].said for name in chosen(inputs.config)))
    rows: list[Completion] = []
    for place, name in enumerate(needed):
        report = _part_of(inputs.report, place, len(needed))
        answered = name in (TEST, TOXICITY)  # the others read likelihoods, of models alone
        policies = inputs.policies if answered else own_weights(inputs.policies)
        found = SAID[name].rows(replace(inputs, policies=policies, report=report))
        if not found and inputs.config.suites is not None:
            wanted = [suite for suite in inputs.config.suites if SUITES[suite].said == name]
            raise ValueError(f"suite {wanted[0]}: nothing to judge; it needs {SAID[name].needs}")
        report(Step(1, 1))
        rows += found
    if not rows:
        raise ValueError("nothing to judge: neither prompts nor texts were given")
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(out / SAMPLES, (row.to_json() for row in rows))
    return rows


def chosen(config: EvaluationConfig) -> list[SuiteName]:
    """The suites asked for, or all."""
    return list(SUITES) if config.suites is None else config.suites


def scorers_of(inputs: Inputs) -> dict[str, list[Scorer]]:
    """For each kind of rows, who judges them; each once, though several suites may ask."""
    found: dict[str, dict[str, Scorer]] = {}
    for name in chosen(inputs.config):
        judges = found.setdefault(SUITES[name].said, {})
        judges |= {each.name: each for each in SUITES[name].scorers(inputs)}
    return {said: list(judges.values()) for said, judges in found.items()}


def scored_rows(
    rows: Sequence[Completion], scorers: Mapping[str, Sequence[Scorer]]
) -> list[Completion]:
    """The rows with the scores of those who judge their kind, in the order of kinds."""
    found: list[Completion] = []
    for said in dict.fromkeys(map(kind_of, rows)):
        found += scored([row for row in rows if kind_of(row) == said], scorers.get(said, ()))
    return found


def kind_of(row: Completion) -> str:
    """The name in SAID of whoever made the row."""
    return row.suite.partition(":")[0]


def results_from(
    rows: Sequence[Completion],
    config: EvaluationConfig,
    seed: int,
    measured: Mapping[str, Any] = MappingProxyType({}),
) -> Results:
    """All numbers, from nothing but scored rows; `measured` is the scorers' own validity."""
    models = list(dict.fromkeys(row.model for row in rows))
    suites = [SUITES[name] for name in chosen(config)]
    tables = [table for suite in suites for table in suite.tables(rows, models, config)]
    notes = [note for suite in suites for note in suite.notes(rows, config)]
    notes += validity_notes(measured)
    return results_of(
        [table for table in tables if table.value_NM.size],
        pairs_of(config, models),
        Resampling(config.resamples, config.sign_flips, seed),
        scorers=scorer_identities(rows),
        notes=list(dict.fromkeys(notes)),
        about={**about_of(config, models, seed), **measured},
    )


def pairs_of(config: EvaluationConfig, models: Sequence[str]) -> list[tuple[str, str]]:
    """Each later policy against each policy to compare with, in the order of training."""
    return [
        (model, other)
        for place, model in enumerate(models)
        for other in config.compare_with
        if other in models[:place]
    ]


def _part_of(report: Report, place: int, parts: int) -> Report:
    """Reports one part's progress as that of the whole."""

    def said(step: Step) -> None:
        if not step.total:
            report(step)
            return
        done = place * _PARTS + _PARTS * step.done // max(1, step.total)
        report(Step(done, parts * _PARTS, step.metrics, step.doing))

    return said


def about_of(config: EvaluationConfig, models: Sequence[str], seed: int) -> dict[str, Any]:
    """What a report must know about an evaluation of policies."""
    return {
        "policies": list(models),
        "baseline": config.baseline,
        "instructions": dict(config.instructions),
        "shown_samples": config.shown_samples,
        "seed": seed,
        "resamples": config.resamples,
        "sign_flips": config.sign_flips,
    }
