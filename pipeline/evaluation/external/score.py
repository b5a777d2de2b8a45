"""The tables of other people's samples: one for each score, whoever gave it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from pipeline.config.evaluation import EvaluationConfig
from pipeline.evaluation.evaluate import (
    RESULTS,
    SAMPLE_KINDS,
    SAMPLES,
    about_of,
    chosen,
    kind_of,
    pairs_of,
    score_samples,
    scorers_of,
)
from pipeline.evaluation.external.sample_files import (
    FILE_SCORER,
    SampleFiles,
    common_rows,
    open_samples,
)
from pipeline.evaluation.samples.records import Completion, ScoredRows
from pipeline.evaluation.samples.results import (
    Results,
    check_failures,
    results_of,
    write_results,
)
from pipeline.evaluation.samples.tables import (
    Better,
    Quantity,
    Resampling,
    Table,
    matched_pairs,
    score_table,
)
from pipeline.evaluation.scorers.scorer import Scorer
from pipeline.evaluation.scorers.style import ANSWERS, STYLE, ReferenceAnswers, Style
from pipeline.evaluation.scorers.toxicity import ON_PROMPTS, ProfanityScorer, PromptToxicity
from pipeline.evaluation.suites.suite import Inputs
from pipeline.evaluation.suites.toxicity import (
    by_prompt_tables,
    instruction_tables,
    offline_scorers,
)
from pipeline.evaluation.suites.truthfulqa import judged_truth_tables
from pipeline.evaluation.validity import measured_validity, validity_notes
from reward_models.atomic_files import written_aside
from stages.progress import Report, silent

TRUTH = {"true", "info"}
_PORTION = 2048  # rows that are judged together


def external_tables(
    rows: ScoredRows, models: Sequence[str], config: EvaluationConfig
) -> list[Table]:
    """Return toxicity and truth with all that belongs to them, means of other scores, and style."""
    tables: list[Table] = []
    has_toxicity = False
    for scorer in rows.scorers:
        if scorer == STYLE or scorer.endswith(ON_PROMPTS):
            continue
        metrics = set(rows.metrics(scorer))
        if "toxicity" in metrics or not metrics:
            suite = f"toxicity_{scorer}" if has_toxicity else "toxicity"
            if not has_toxicity:  # the first is the headline
                tables += by_prompt_tables(rows, models, scorer=scorer)
            tables += instruction_tables(rows, models, config, scorer=scorer, suite=suite)
            has_toxicity = True
        if scorer == FILE_SCORER and "true" in metrics:
            tables += judged_truth_tables(rows, models, scorer=scorer)
            metrics -= TRUTH
        better: Better = "higher" if scorer == ANSWERS else None
        suite = "answers" if scorer == ANSWERS else "scores"
        for metric in sorted(metrics - {"toxicity"}):
            tables += _averages(rows, models, Quantity(suite, metric, scorer=scorer, better=better))
    for metric in ("words", "refusal", "empty"):
        tables += _averages(rows, models, Quantity("responses", metric, scorer=STYLE))
    return tables


def _averages(rows: ScoredRows, models: Sequence[str], q: Quantity) -> Iterator[Table]:
    for kind, part in rows.judged(q.scorer, q.metric).by("prompt_type"):
        yield score_table(part, replace(q, filter=kind), models)


def score_file(
    paths: Sequence[Path],
    columns: Mapping[str, str],
    *,
    out: Path,
    scorers: Sequence[Scorer] | None = None,
    against: Sequence[str] = (),
    config: EvaluationConfig | None = None,
    seed: int = 0,
    report: Report = silent,
) -> Results:
    """Score the samples in `paths`; write out/samples.jsonl and out/results.json.

    `scorers` None means those of the config, and these only where the files give no toxicity of
    their own. `against` holds pair patterns (see `matched_pairs`). Raises ValueError on bad input,
    before anything is written, and after writing if too many rows could not be scored.
    """
    files = open_samples(paths, columns)
    config = config or EvaluationConfig()
    if config.baseline not in files.models:
        config = config.model_copy(update={"baseline": files.models[0]})
    wanted_S = common_rows(files.index, config.missing, files.notes)
    has_own = any(suite.partition(":")[0] in SAMPLE_KINDS for suite in files.index["suite"])
    pairs = pairs_of(config, files.models) if has_own and not against else []
    pairs = pairs or matched_pairs(files.models, against)
    by_kind = {"": _external_scorers(files, scorers, config)}
    if has_own:
        by_kind |= scorers_of(Inputs(config, {}))
    out.mkdir(parents=True, exist_ok=True)
    with written_aside(out / SAMPLES) as aside, aside.open("w", encoding="utf-8") as lines:

        def written() -> Iterator[Completion]:
            for row in _scored(files.rows(wanted_S, report), by_kind):
                lines.write(json.dumps(row.to_json(), ensure_ascii=False, allow_nan=False) + "\n")
                yield row

        rows = ScoredRows.of(written(), has_texts=lambda row: kind_of(row) in SAMPLE_KINDS)
    validity = measured_validity(rows, by_kind, config)
    suites = chosen(config) if has_own else []
    tables = [table for suite in suites for table in suite.tables(rows, files.models, config)]
    notes = [note for suite in suites for note in suite.notes(rows, config)]
    external = rows.where(~rows.kind.isin(SAMPLE_KINDS))
    if len(external):
        tables = external_tables(external, files.models, config) + tables
    results = results_of(
        tables,
        pairs,
        Resampling(config.resamples, config.sign_flips, seed),
        scorers=rows.meta,
        notes=[*files.notes, *dict.fromkeys(notes), *validity_notes(validity)],
        about={
            **(about_of(config, files.models, seed) if has_own else {"seed": seed}),
            "files": [path.name for path in paths],
            **validity,
        },
    )
    write_results(results, out / RESULTS)
    check_failures(results, config.max_failed)
    return results


def _external_scorers(
    files: SampleFiles, scorers: Sequence[Scorer] | None, config: EvaluationConfig
) -> list[Scorer]:
    """The scorers of every kind of rows that no suite of ours made."""
    gives_toxicity = files.gives("toxicity")
    if scorers is None:
        named = "toxicity_scorers" in config.model_fields_set
        scorers = offline_scorers(config) if named or not gives_toxicity else []
    on_prompts = [PromptToxicity(ProfanityScorer())] if gives_toxicity or scorers else []
    return [*scorers, Style(), ReferenceAnswers(), *on_prompts]


def _scored(
    rows: Iterator[Completion], by_kind: Mapping[str, Sequence[Scorer]]
) -> Iterator[Completion]:
    """The rows with their scores, in portions."""
    kinds = {kind: by_kind.get(kind, ()) for kind in SAMPLE_KINDS}
    while portion := list(islice(rows, _PORTION)):
        external = {kind_of(row): by_kind[""] for row in portion}
        yield from score_samples(portion, {**external, **kinds})
