"""`rlhf score`: samples from anywhere through the same scorers and statistics as our own policies.

Rows are read, judged and written one portion after another, so that the memory holds their scores
and not their texts.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.alignment import common_prompts, matched_pairs
from pipeline.evaluation.by_prompt import PromptToxicity
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.evaluate import (
    RESULTS,
    SAMPLES,
    about_of,
    chosen,
    kind_of,
    pairs_of,
    scorers_of,
)
from pipeline.evaluation.foreign_tables import foreign_tables
from pipeline.evaluation.prompt_numbers import Part
from pipeline.evaluation.results import Results, check_failures, results_of, scorer_identities
from pipeline.evaluation.results_file import write_results
from pipeline.evaluation.sample_files import SampleFiles, open_samples
from pipeline.evaluation.samples import Completion
from pipeline.evaluation.scored_rows import ScoredRows, where
from pipeline.evaluation.scorers import Scorer, scored
from pipeline.evaluation.setting import Setting
from pipeline.evaluation.style import ReferenceAnswers, Style
from pipeline.evaluation.suites import SAID, SUITES
from pipeline.evaluation.tables import Resampling, Table
from pipeline.evaluation.toxicity import ProfanityScorer
from pipeline.evaluation.toxicity_suite import toxicity_judges
from pipeline.evaluation.validity import measured_validity, validity_notes
from reward_models.records import write_jsonl
from stages.progress import Report, silent

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
    found = scorers_of(Setting(config, {})) if _ours(files) else {}
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
