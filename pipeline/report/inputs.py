"""The inputs of a report: files that a run left behind, and nothing else.

A run is a folder with one folder a stage, or the folder that `rlhf score` wrote.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.samples.results import Results, read_results
from pipeline.evaluation.samples.tables import Cell
from pipeline.evaluation.scorers.gold import GOLD
from pipeline.runs.manifest import Manifest
from pipeline.runs.splits import OVERLAP, Overlap, read_overlaps
from pipeline.runs.stage import latest, stage_names
from reward_models.records import read_records
from reward_models.row_files import read_jsonl

MetricRows = Sequence[Mapping[str, float | None]]


@dataclass(frozen=True, slots=True)
class ReportInputs:
    """The content of a run's files. `metrics` and `manifests` are by stage.

    `held_out` is the reward model's; `folds` has the accuracy of models on annotators that they
    learned from and on others.
    """

    name: str
    results: Results
    samples: Sequence[Completion]
    metrics: Mapping[str, MetricRows]
    manifests: Mapping[str, Manifest]
    held_out: Mapping[str, Any] | None
    folds: Mapping[str, Any] | None
    prompt_folds: Mapping[str, Any] | None = None  # the same, every prompt held out once
    overlaps: Sequence[Overlap] = ()  # of held-out sets with those that are trained on

    @property
    def label_kinds(self) -> set[str]:
        """The kinds of labels: human, simulated, imported, judge. Empty where none was used."""
        kinds = {kind for manifest in self.manifests.values() for kind in manifest.labels}
        kinds |= set((self.held_out or {}).get("label_kinds", ()))
        reward = self.results.scorers.get("reward model")
        if reward:
            kinds |= set(str(reward["version"]).removesuffix(" labels").split(" and "))
        return kinds & {"human", "simulated", "imported", "judge"}

    @property
    def label_mix(self) -> str:
        """The rankings that the reward model learned from, counted by who made them."""
        mix: dict[str, int] = (self.held_out or {}).get("mix", {})
        return ", ".join(f"{number} {kind}" for kind, number in mix.items())

    @property
    def synthetic(self) -> bool:
        """True where the prompts are the quickstart's invented ones."""
        return GOLD in self.results.scorers

    @property
    def baseline(self) -> str:
        """The policy that win rates are against."""
        return str(self.results.about.get("baseline", ""))

    @property
    def focus(self) -> str:
        """The policy the experiment is about: the last one trained; "" for other people's."""
        return self.results.models[-1] if self.baseline else ""

    @property
    def suites(self) -> list[str]:
        """The suites in the order in which they were evaluated."""
        return list(dict.fromkeys(cell.quantity.suite for cell in self.results.cells))

    def cells(self, suite: str, metric: str | None = None, part: str | None = None) -> list[Cell]:
        """Return a suite's cells, or those of one metric or part of it."""
        return [
            cell
            for cell in self.results.cells
            if cell.quantity.suite == suite
            and metric in (None, cell.quantity.metric)
            and part in (None, cell.quantity.filter)
        ]


def read_inputs(run: Path) -> ReportInputs:
    """Read a run's files; ValueError if there are no results in it."""
    folder = next((f for f in (run / "evaluate", run) if (f / "results.json").is_file()), None)
    if folder is None:
        raise ValueError(f"{run}: no results.json; expected a run whose evaluation is finished")
    results = read_results(folder / "results.json")
    if not results.cells:
        raise ValueError(f"{folder}/results.json: no number in it; nothing to report")
    samples = folder / "samples.jsonl"
    stages = stage_names(run)
    manifests = {stage: Manifest.read(run / stage / "manifest.json") for stage in stages}
    return ReportInputs(
        name=run.resolve().name,
        results=results,
        samples=read_records(samples, Completion) if samples.is_file() else [],
        metrics={
            stage: [row for _, row in read_jsonl(run / stage / "metrics.jsonl")]
            for stage in stages
            if (run / stage / "metrics.jsonl").is_file()
        },
        manifests={
            stage: manifest for stage, manifest in manifests.items() if manifest is not None
        },
        held_out=_json(latest(run) / "held_out.json"),
        folds=_json(latest(run) / "annotator_folds.json"),
        prompt_folds=_json(latest(run) / "prompt_folds.json"),
        overlaps=read_overlaps(run / "data" / OVERLAP),
    )


def _json(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    return content
