"""The page about the run; it reads the manifests and metrics of all stages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.runs.stage import Source, in_round
from pipeline.steps.step import ExperimentStage
from stages.config import without_external_names
from stages.progress import Report, Step


@dataclass(frozen=True)
class ReportPage(ExperimentStage):
    """Write report.html."""

    trained: Sequence[str] = ()  # names of the stages that train
    kind = "report"
    about = "report.html"

    def inputs(self) -> Mapping[str, Source]:
        inputs: dict[str, Source] = {"results": self.folder / "evaluate"}
        if self.config.reward is not None:
            reward = in_round("reward", self.config.rounds)
            inputs["held-out rankings"] = self.folder / reward / "held_out.json"
        for name in self.trained:
            inputs[f"metrics of {name}"] = self.folder / name / "metrics.jsonl"
        return inputs

    def settings(self) -> Mapping[str, Any]:
        return {"seed": self.config.seed, "experiment": without_external_names(self.config)}

    def run(self, out: Path, report: Report) -> None:
        from pipeline.report.build import write_report

        write_report(self.folder, out / "report.html")
        report(Step(1, 1))
