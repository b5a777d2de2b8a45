"""What other people's scored samples come to: a table for each score, whoever gave it."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config.evaluation import EvaluationConfig
from pipeline.evaluation.evaluate import (
    RESULTS,
    SAMPLES,
    about_of,
    chosen,
    kind_of,
    pairs_of,
    scorers_of,
)
from pipeline.evaluation.external.columns import FILE_SCORER
from pipeline.evaluation.external.sample_files import SampleFiles, open_samples
from pipeline.evaluation.samples.alignment import Part, common_prompts, matched_pairs
from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.samples.results import (
    Results,
    check_failures,
    results_of,
    scorer_identities,
    write_results,
)
from pipeline.evaluation.samples.scored_rows import ScoredRows, names_of, where
from pipeline.evaluation.samples.tables import Better, Quantity, Resampling, Table, tabulate
from pipeline.evaluation.scorers.scorer import Scorer, scored
from pipeline.evaluation.scorers.toxicity import ProfanityScorer, toxicity_tables
from pipeline.evaluation.scorers.validity import measured_validity, validity_notes
from pipeline.evaluation.suites.by_prompt import PROMPTS, PromptToxicity, by_prompt_tables
from pipeline.evaluation.suites.order import SAID, SUITES
from pipeline.evaluation.suites.style import ANSWERS, STYLE, ReferenceAnswers, Style
from pipeline.evaluation.suites.suite import Inputs
from pipeline.evaluation.suites.toxicity import threshold_of, toxicity_judges
from pipeline.evaluation.suites.truthfulness import truthfulness_tables
from reward_models.atomic_files import write_jsonl
from stages.progress import Report, silent

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
        kept = where(rows, partial(_judged_by, prompt_type, scorer, metric))
        quantity = Quantity(wanted.suite, metric, prompt_type, scorer, wanted.better)
        found.append(tabulate(kept, quantity, lambda row: row.score(scorer, metric), models))
    return found


def _judged_by(prompt_type: str, scorer: str, metric: str, row: Completion) -> bool:
    return row.prompt_type == prompt_type and row.has(scorer, metric)


_PORTION = 2048  # rows that are judged together


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
    config = _fitting(config or EvaluationConfig(), files)
    common = common_prompts(files.answered, config.missing, files.notes)
    pairs = pairs_of(config, files.models) if _ours(files) and not against else []
    pairs = pairs or matched_pairs(files.models, against)
    judges = _judges(files, scorers, config)
    out.mkdir(parents=True, exist_ok=True)
    rows = _judged(files, common, judges, out, report)
    everyone = {each.name: each for several in judges.values() for each in several}
    measured = measured_validity(rows, list(everyone.values()), config)
    about = about_of(config, files.models, seed) if _ours(files) else {"seed": seed}
    results = results_of(
        [table for table in _tables(rows, files.models, config) if table.value_NM.size],
        pairs,
        Resampling(config.resamples, config.sign_flips, seed),
        scorers=scorer_identities(rows),
        notes=[*files.notes, *_notes(rows, config), *validity_notes(measured)],
        about={**about, "files": [path.name for path in paths], **measured},
    )
    write_results(results, out / RESULTS)
    check_failures(results, config.max_failed)
    return results


def _judged(
    files: SampleFiles,
    common: Mapping[Part, NDArray[np.bool_]],
    judges: Mapping[str, Sequence[Scorer]],
    out: Path,
    report: Report,
) -> ScoredRows:
    """Read, judge and write portion by portion; return what tables read of the rows.

    The suites' own tables read texts too.
    """
    rows = ScoredRows(files.number)

    def written() -> Iterator[Mapping[str, object]]:
        wanted = (
            row
            for row in files.rows(report)
            if common[row.suite, row.prompt_type][files.number[row.id]]
        )
        while portion := list(islice(wanted, _PORTION)):
            for row in _scored(portion, judges):
                (rows.keep if kind_of(row) in SAID else rows.add)(row)
                yield row.to_json()

    write_jsonl(out / SAMPLES, written())
    return rows


def _ours(files: SampleFiles) -> bool:
    """Whether any row is one that a suite of ours made."""
    return any(suite.partition(":")[0] in SAID for suite, _ in files.answered)


def _fitting(config: EvaluationConfig, files: SampleFiles) -> EvaluationConfig:
    """With a baseline that is among the models: as set, or the first of them."""
    if config.baseline in files.models:
        return config
    return config.model_copy(update={"baseline": files.models[0]})


def _judges(
    files: SampleFiles, scorers: Sequence[Scorer] | None, config: EvaluationConfig
) -> dict[str, list[Scorer]]:
    """Who judges each kind of rows; "" is every kind that no suite of ours made."""
    found = scorers_of(Inputs(config, {})) if _ours(files) else {}
    if scorers is None:
        asked = "toxicity_scorers" in config.model_fields_set
        scorers = toxicity_judges(config) if asked or not files.gives("toxicity") else []
    toxic = files.gives("toxicity") or bool(scorers)
    on_prompts = [PromptToxicity(ProfanityScorer())] if toxic else []
    return {**found, "": [*scorers, Style(), ReferenceAnswers(), *on_prompts]}


def _scored(
    rows: Sequence[Completion], judges: Mapping[str, Sequence[Scorer]]
) -> Iterator[Completion]:
    for kind in dict.fromkeys(map(kind_of, rows)):
        mine = [row for row in rows if kind_of(row) == kind]
        yield from scored(mine, judges.get(kind if kind in SAID else "", ()))


def _tables(
    rows: Sequence[Completion], models: Sequence[str], config: EvaluationConfig
) -> list[Table]:
    foreign = where(rows, lambda row: kind_of(row) not in SAID)
    found = foreign_tables(foreign, models, config) if foreign else []
    for name in chosen(config) if len(foreign) < len(rows) else []:
        found += SUITES[name].tables(rows, models, config)
    return found


def _notes(rows: Sequence[Completion], config: EvaluationConfig) -> list[str]:
    if not any(kind_of(row) in SAID for row in rows):
        return []
    return list(
        dict.fromkeys(note for name in chosen(config) for note in SUITES[name].notes(rows, config))
    )
