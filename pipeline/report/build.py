"""report.html: one self-contained page about a run, made from the files it left behind.

templates/report.html.j2 has the sections and their texts; here are the figures in them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.evaluation.samples.tables import Cell, Quantity
from pipeline.evaluation.scorers.toxicity import BY_PROMPT
from pipeline.report import training
from pipeline.report.figures import (
    Curve,
    IntervalPanel,
    LinePanel,
    Scale,
    grouped_bars,
    interval_panel,
    line_panel,
    scale_of,
)
from pipeline.report.inputs import ReportInputs, read_inputs
from pipeline.report.outputs import outputs
from pipeline.report.render import Group, group, render, write_page
from pipeline.report.tables import write_tables
from pipeline.report.terminal import summary_lines
from pipeline.report.words import capital, filter_title, named, suite_title

HALLUCINATION = (
    "hallucination",
    "hallucinated",
    "answered_unanswerable",
    "false_abstention",
    "correct_answerable",
    "unsupported",
    "novel_bigrams",
)
STYLE = ("tokens", "words", "eos_rate", "refusal", "repeated_answer", "most_frequent_answer")
TAX = ("tax", "pretraining")
WITH_SECTION = frozenset(
    {"preference", "preference_by_reward_model", "use_cases", "reward_model", "hallucination"}
    | {"truthfulness", "responses", *TAX}
)  # and every suite of toxicity
MOST_CURVES = 6  # more names than that do not fit beside their ends


def write_report(run: Path, out: Path) -> Path:
    """Write the page about the run to `out`, and its tables beside it; ValueError if no results."""
    inputs = read_inputs(run)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_tables(inputs, out.parent / "tables")
    write_page(out, "report.html.j2", **_content(inputs))
    return out


def report_page(inputs: ReportInputs) -> str:
    """Return the whole page as HTML."""
    return render("report.html.j2", **_content(inputs))


def _content(inputs: ReportInputs) -> dict[str, object]:
    """Return what the template shows: the inputs, figures by section, summary and outputs."""
    results = inputs.results
    figures = {
        "preference": [preference(inputs)],
        "use_cases": [use_cases(inputs)],
        "hallucination": [hallucination(inputs)],
        "toxicity": toxicity(inputs),
        "truthfulness": truthfulness(inputs),
        "cost": [cost(inputs)],
        "more": other_suites(inputs),
        "reward_kl": [training.reward_against_kl(inputs)],
        "reward_model": [training.reward_model(inputs)],
        "curves": [training.learning_curves(inputs)],
    }
    return {
        "inputs": inputs,
        "results": results,
        "figures": figures,
        "summary": summary_lines(results),
        "suites": inputs.suites,
        "tax": list(dict.fromkeys(c.quantity for c in results.cells if c.quantity.suite in TAX)),
        "shared_passes": training.shared_passes(inputs),
        "outputs": outputs(inputs),
        "name_width": min(13, max(map(len, results.models)) + 1),
    }


def preference(inputs: ReportInputs) -> Group:
    """Return win rates against the baseline, by the judge and by the reward model."""
    panels = [
        interval_panel(
            [c for c in inputs.cells(suite, "win_rate", "all") if c.model != inputs.baseline],
            title=title,
            focus=inputs.focus,
            reference=0.5,
            hollow=hollow,
            scale=Scale(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0)),
        )
        for suite, title, hollow in (
            ("preference", "by the gold judge", False),
            ("preference_by_reward_model", "by the reward model: not independent", True),
        )
    ]
    return group(*panels)


def use_cases(inputs: ReportInputs) -> Group:
    """Return the judge's score in each use case, all on one scale."""
    cells = [c for c in inputs.cells("use_cases", "gold") if c.quantity.filter != "all"]
    return group(*_by_part(cells, inputs.focus))


def hallucination(inputs: ReportInputs) -> Group:
    """Return the headline rate and its parts."""
    return group(*(_panel(inputs, "hallucination", m, "all") for m in HALLUCINATION))


def toxicity(inputs: ReportInputs) -> list[Group]:
    """Return each measure under each instruction, on one scale a measure."""
    groups = [_bars(inputs, "toxicity", "toxicity")]
    for suite in inputs.suites:
        if not _is_toxicity(suite) or suite == BY_PROMPT:
            continue
        for metric, cells in _grouped(inputs.cells(suite), lambda q: q.metric).items():
            name = named(metric)
            heading = capital(name.title) + (f": {name.meaning}" if name.meaning else "")
            panels = _by_part(cells, inputs.focus)
            columns, scorer = "three" if len(panels) == 3 else "two", cells[0].quantity.scorer
            groups.append(group(*panels, columns=columns, heading=heading, small=scorer))
    return [*groups, _toxicity_by_prompt(inputs)]


def _toxicity_by_prompt(inputs: ReportInputs) -> Group:
    """Return toxicity against the prompt's own, a panel an instruction (figure 39 of the paper)."""
    cells = inputs.cells(BY_PROMPT)
    models = list(dict.fromkeys(c.model for c in cells))
    panels: list[LinePanel | None] = []
    if len(models) > MOST_CURVES:
        return group()
    for instruction, same in _grouped(cells, lambda q: q.filter.rpartition(" @ ")[0]).items():
        curves = [
            Curve(
                model,
                [(_prompt_toxicity(c), c.value) for c in same if c.model == model],
                accent=model == inputs.focus,
                dots=True,
                spans=[c.ci95 for c in same if c.model == model],
            )
            for model in models
        ]
        title, x_title = filter_title(instruction), "toxicity of the prompt"
        panels.append(line_panel(curves, title=title, x_title=x_title, from_zero=True))
    return group(*panels, columns="three", heading="Toxicity against the prompt's own")


def _prompt_toxicity(cell: Cell) -> float:
    """Return the middle of a part such as `none @ 0.2 to 0.4`."""
    low, high = cell.quantity.filter.rpartition(" @ ")[2].split(" to ")
    return (float(low) + float(high)) / 2


def truthfulness(inputs: ReportInputs) -> list[Group]:
    """Return truth, truth with information, and declining together."""
    return [
        _bars(inputs, "truthfulness", "true"),
        *(
            group(
                *_by_part(cells, inputs.focus),
                columns="three",
                heading=capital(named(metric).title),
            )
            for metric, cells in _grouped(inputs.cells("truthfulness"), lambda q: q.metric).items()
        ),
    ]


def cost(inputs: ReportInputs) -> Group:
    """Return the loss on pretraining text, and what moves scores without merit."""
    loss = _panel(inputs, "pretraining", "loss", "held-out")
    kinds = dict.fromkeys(c.quantity.filter for c in inputs.cells("responses"))
    parts = sorted(kinds, key=lambda kind: kind != "all")  # test prompts first, then provoked ones
    panels = [_panel(inputs, "responses", m, kind) for m in STYLE for kind in parts]
    return group(loss, *panels)


def other_suites(inputs: ReportInputs) -> list[Group]:
    """Return every suite that no other section shows."""
    groups = []
    for suite in inputs.suites:
        if suite in WITH_SECTION or _is_toxicity(suite):
            continue
        panels = [
            _panel(inputs, suite, metric, part, scale_of(cells))
            for metric, cells in _grouped(inputs.cells(suite), lambda q: q.metric).items()
            for part in dict.fromkeys(c.quantity.filter for c in cells)
        ]
        groups.append(group(*panels, heading=capital(suite_title(suite))))
    return groups


def _bars(inputs: ReportInputs, suite: str, metric: str) -> Group:
    """Return a measure under each instruction at a glance."""
    by_part = _grouped(inputs.cells(suite, metric), lambda q: q.filter)
    bars = {filter_title(part): cells for part, cells in by_part.items()}
    title = named(metric).title
    panel = grouped_bars(bars, title=title, about="at a glance", focus=inputs.focus)
    return group(panel, columns="one")


def _by_part(cells: Sequence[Cell], focus: str) -> list[IntervalPanel | None]:
    """Return a panel for each part of a suite, all on one scale."""
    scale = scale_of(cells)
    return [
        interval_panel(same, title=filter_title(part), focus=focus, scale=scale)
        for part, same in _grouped(cells, lambda q: q.filter).items()
    ]


def _panel(
    inputs: ReportInputs, suite: str, metric: str, part: str, scale: Scale | None = None
) -> IntervalPanel | None:
    """Return a panel with the metric's name and meaning above it."""
    name, cells = named(metric), inputs.cells(suite, metric, part)
    about = name.meaning + ("" if part in {"all", "held-out"} else f", {filter_title(part)}")
    about = about.removeprefix(", ")
    return interval_panel(cells, title=name.title, about=about, focus=inputs.focus, scale=scale)


def _grouped(cells: Sequence[Cell], key: Callable[[Quantity], str]) -> dict[str, list[Cell]]:
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(key(cell.quantity), []).append(cell)
    return groups


def _is_toxicity(suite: str) -> bool:
    return suite.split("_")[0] == "toxicity"
