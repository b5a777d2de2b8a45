"""The sections whose prompts come under several instructions: toxicity and truthfulness."""

from html import escape

from pipeline.evaluation.suites.by_prompt import SUITE as BY_PROMPT
from pipeline.report.bars import grouped_bars
from pipeline.report.by_prompt import by_prompt_toxicity
from pipeline.report.forest import interval_panel, scale_of
from pipeline.report.inputs import ReportInputs
from pipeline.report.sections import cells_of, grid, section
from pipeline.report.words import capital, filter_title, named


def toxicity(inputs: ReportInputs) -> str:
    """Each measure under each instruction, on one scale a measure."""
    kinds = [s for s in _suites(inputs) if s.split("_")[0] == "toxicity"]
    suites = [s for s in kinds if s != BY_PROMPT]
    parts = []
    for suite in suites:
        cells = [c for c in inputs.results.cells if c.quantity.suite == suite]
        for metric in dict.fromkeys(c.quantity.metric for c in cells):
            mine = [c for c in cells if c.quantity.metric == metric]
            scale = scale_of(mine)
            panels = [
                interval_panel(
                    cells_of(inputs, suite, metric, kind),
                    title=filter_title(kind), focus=inputs.focus, scale=scale,
                )
                for kind in dict.fromkeys(c.quantity.filter for c in mine)
            ]  # fmt: skip
            name = named(metric)
            heading = (
                f"{capital(name.title)}: {name.meaning}" if name.meaning else capital(name.title)
            )
            scorer = escape(mine[0].quantity.scorer)
            columns = "three" if len(panels) == 3 else "two"
            title = f"<h3>{escape(heading)} <small>{scorer}</small></h3>"
            parts.append(title + grid(*panels, columns=columns))
    parts.insert(0, grid(_bars(inputs, "toxicity", "toxicity"), columns="one"))
    parts.append(by_prompt_toxicity(inputs))
    about = (
        "Completions of sentence beginnings without an instruction, asked to be respectful, and "
        "asked to be as offensive as possible. A lower number under the last is no aim of the "
        "training: it follows instructions."
    )
    return section("toxicity", "Toxicity by instruction", about, *parts)


def truthfulness(inputs: ReportInputs) -> str:
    """Truth, truth with information, and declining stand together."""
    cells = [c for c in inputs.results.cells if c.quantity.suite == "truthfulness"]
    parts = []
    for metric in dict.fromkeys(c.quantity.metric for c in cells):
        mine = [c for c in cells if c.quantity.metric == metric]
        panels = [
            interval_panel(
                cells_of(inputs, "truthfulness", metric, kind),
                title=filter_title(kind), focus=inputs.focus, scale=scale_of(mine),
            )
            for kind in dict.fromkeys(c.quantity.filter for c in mine)
        ]  # fmt: skip
        parts.append(
            f"<h3>{escape(capital(named(metric).title))}</h3>{grid(*panels, columns='three')}"
        )
    parts.insert(0, grid(_bars(inputs, "truthfulness", "true"), columns="one"))
    about = "High truth is often silence: read it beside the information and the declining."
    return section("truthfulness", "Truthfulness", about, *parts)


def _bars(inputs: ReportInputs, suite: str, metric: str) -> str:
    cells = [
        c for c in inputs.results.cells if (c.quantity.suite, c.quantity.metric) == (suite, metric)
    ]
    kinds = dict.fromkeys(c.quantity.filter for c in cells)
    groups = {filter_title(k): [c for c in cells if c.quantity.filter == k] for k in kinds}
    title = named(metric).title
    return grouped_bars(groups, title=title, about="at a glance", focus=inputs.focus)


def _suites(inputs: ReportInputs) -> list[str]:
    return list(dict.fromkeys(cell.quantity.suite for cell in inputs.results.cells))
