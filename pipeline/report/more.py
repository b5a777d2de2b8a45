"""Suites that have no section of their own."""

from pipeline.report.forest import interval_panel, scale_of
from pipeline.report.inputs import ReportInputs
from pipeline.report.sections import grid, section
from pipeline.report.tax import TAX
from pipeline.report.words import capital, filter_title, named, suite_title

_SHOWN = {
    "preference", "preference_by_reward_model", "use_cases", "reward_model", "hallucination",
    "truthfulness", "responses", *TAX,
}  # fmt: skip


def others(inputs: ReportInputs) -> str:
    """Every suite that no other section shows, a heading a suite."""
    cells = [c for c in inputs.results.cells if not _has_section(c.quantity.suite)]
    parts = []
    for suite in dict.fromkeys(c.quantity.suite for c in cells):
        mine = [c for c in cells if c.quantity.suite == suite]
        panels = []
        for metric in dict.fromkeys(c.quantity.metric for c in mine):
            same = [c for c in mine if c.quantity.metric == metric]
            scale = scale_of(same)
            for part in dict.fromkeys(c.quantity.filter for c in same):
                name = named(metric)
                about = name.meaning + (f", {filter_title(part)}" if part != "all" else "")
                panels.append(
                    interval_panel(
                        [c for c in same if c.quantity.filter == part],
                        title=name.title, about=about.removeprefix(", "), focus=inputs.focus,
                        scale=scale,
                    )
                )  # fmt: skip
        parts.append(f"<h3>{capital(suite_title(suite))}</h3>{grid(*panels)}")
    return section("more", "More measures", "", *parts)


def _has_section(suite: str) -> bool:
    return suite in _SHOWN or suite.split("_")[0] == "toxicity"
