"""report.html: one self-contained page about a run, made from the files it left behind."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.evaluation.samples.tables import Cell
from pipeline.evaluation.suites.by_prompt import SUITE as BY_PROMPT
from pipeline.report import tables, training
from pipeline.report.figures import (
    BarPanel,
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
from pipeline.report.layout import (
    Figures,
    Heading,
    Page,
    Section,
    Tile,
    grid,
    render,
    section,
    write_page,
)
from pipeline.report.outputs import outputs
from pipeline.report.terminal import verdict_text
from pipeline.report.words import capital, filter_title, interval, named, number, suite_title

TILES = (
    ("preference", "win_rate", "all"),
    ("hallucination", "hallucination", "all"),
    ("toxicity", "toxicity", "none"),
    ("pretraining", "loss", "held-out"),
)
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
WITH_SECTION = frozenset(
    {"preference", "preference_by_reward_model", "use_cases", "reward_model", "hallucination"}
    | {"truthfulness", "responses", *tables.TAX}
)  # and every suite of toxicity
MOST_CURVES = 6  # more names than that do not fit beside their ends
SIMULATED = (
    "Programs, not people, ranked the outputs behind this reward model{}. Nothing here says what "
    "people like."
)
SYNTHETIC = (
    "Prompts, passages and texts are about an invented world, made by a program, which also knows "
    "the right answers."
)


def write_report(run: Path, out: Path) -> Path:
    """Write the page about the run to `out`, and its tables beside it; ValueError if no results."""
    inputs = read_inputs(run)
    out.parent.mkdir(parents=True, exist_ok=True)
    tables.write_tables(inputs, out.parent / "tables")
    write_page(report(inputs), out)
    return out


def report_page(inputs: ReportInputs) -> str:
    """Return the whole page as HTML."""
    return render(report(inputs))


def report(inputs: ReportInputs) -> Page:
    """Return the page's content."""
    sections = (
        tables.summary(inputs),
        preference(inputs),
        use_cases(inputs),
        hallucination(inputs),
        toxicity(inputs),
        truthfulness(inputs),
        cost(inputs),
        other_suites(inputs),
        training.reward_against_kl(inputs),
        training.reward_model(inputs),
        training.learning_curves(inputs),
        outputs(inputs),
        tables.differences(inputs),
        tables.numbers(inputs),
        tables.provenance(inputs),
    )
    return Page(
        title=f"{inputs.name}: report",
        name=inputs.name,
        kicker="What each stage changed" if inputs.focus else "Samples of several models",
        under=(" → " if inputs.focus else ", ").join(inputs.results.models),
        sections=[one for one in sections if one is not None],
        banners=_banners(inputs),
        tiles=_tiles(inputs),
        name_width=min(13, max(map(len, inputs.results.models)) + 1),
    )


def _banners(inputs: ReportInputs) -> list[tuple[str, str]]:
    """Return the warnings that nobody may overlook: simulated labels and invented data."""
    banners = []
    kinds = inputs.label_kinds
    if "simulated" in kinds:
        mixed = "" if kinds == {"simulated"} else ", among labels by people"
        banners.append(("Simulated labels.", SIMULATED.format(mixed)))
    if inputs.synthetic:
        banners.append(("Synthetic data.", SYNTHETIC))
    return banners


def _tiles(inputs: ReportInputs) -> list[Tile]:
    """Return four numbers of the last policy, beside those they have to be compared with."""
    if inputs.focus in {"", inputs.baseline}:
        return []
    return [tile for key in TILES if (tile := _tile(inputs, *key)) is not None]


def _tile(inputs: ReportInputs, suite: str, metric: str, part: str) -> Tile | None:
    cell = inputs.results.cell(inputs.focus, suite, metric, part)
    if cell is None:
        return None
    name, is_win_rate = named(metric), metric == "win_rate"
    others = [c for c in _cells(inputs, suite, metric, part) if c.model != inputs.focus]
    if is_win_rate:
        title, beside = f"preferred to {inputs.baseline}", f"{cell.n} test prompts, ties half"
    else:
        title = name.title + (f", {filter_title(part)}" if part == "none" else "")
        beside = " · ".join(f"{c.model} {number(c.value, name)}" for c in others)
    comparisons = [
        comparison
        for c in others
        if (comparison := inputs.results.comparison(cell.model, c.model, suite, metric, part))
        and (not is_win_rate or c.model == inputs.baseline)
    ]
    verdicts = [
        verdict_text(one) + ("" if is_win_rate else f" against {one.b}") for one in comparisons
    ]
    return Tile(
        capital(title), number(cell.value, name), interval(*cell.ci95, name), beside, verdicts
    )


def preference(inputs: ReportInputs) -> Section | None:
    """Return win rates against the baseline, by the judge and by the reward model."""
    panels = [
        interval_panel(
            [c for c in _cells(inputs, suite, "win_rate", "all") if c.model != inputs.baseline],
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
    about = (
        f"Share of test prompts on which a policy's response beats {inputs.baseline}'s; "
        "ties count half. PPO was trained to please the reward model: its verdict is no evidence."
    )
    return section("preference", "Preference", about, grid(*panels), link="Preference")


def use_cases(inputs: ReportInputs) -> Section | None:
    """Return the judge's score in each use case, all on one scale."""
    cells = [c for c in _of_suite(inputs, "use_cases") if c.quantity.metric == "gold"]
    cells = [c for c in cells if c.quantity.filter != "all"]
    about = (
        "Gold score by use case: what the judge, which knows the facts, gives a response (about "
        "-2 to 1). A gain in the mean that hides a loss here would be no gain."
    )
    panels = _by_filter(cells, inputs.focus)
    return section("use-cases", "Use cases", about, grid(*panels), link="Use cases")


def hallucination(inputs: ReportInputs) -> Section | None:
    """Return the headline rate and its parts."""
    panels = [_titled_panel(inputs, "hallucination", metric, "all") for metric in HALLUCINATION]
    about = (
        "On prompts that come with a passage. Hallucination is a fact that the passage does not "
        "hold, or any answer to a question that it does not answer; declining where the passage "
        "does answer is a false abstention. Neither may be bought with the other."
    )
    return section("hallucination", "Hallucination", about, grid(*panels), link="Hallucination")


def toxicity(inputs: ReportInputs) -> Section | None:
    """Return each measure under each instruction, on one scale a measure."""
    parts: list[Heading | Figures | None] = [_bars(inputs, "toxicity", "toxicity")]
    for suite in _suites(inputs):
        if not _is_toxicity(suite) or suite == BY_PROMPT:
            continue
        for metric, cells in _by_metric(_of_suite(inputs, suite)).items():
            name = named(metric)
            title = capital(name.title) + (f": {name.meaning}" if name.meaning else "")
            parts.append(Heading(title, cells[0].quantity.scorer))
            panels = _by_filter(cells, inputs.focus)
            parts.append(grid(*panels, columns="three" if len(panels) == 3 else "two"))
    parts += _toxicity_by_prompt(inputs)
    about = (
        "Completions of sentence beginnings without an instruction, asked to be respectful, and "
        "asked to be as offensive as possible. A lower number under the last is no aim of the "
        "training: it follows instructions."
    )
    return section("toxicity", "Toxicity by instruction", about, *parts, link="Toxicity")


def _toxicity_by_prompt(inputs: ReportInputs) -> list[Heading | Figures | None]:
    """Return toxicity against the prompt's own, a panel an instruction (figure 39 of the paper)."""
    cells = _of_suite(inputs, BY_PROMPT)
    models = list(dict.fromkeys(c.model for c in cells))
    if len(models) > MOST_CURVES:
        return []
    panels: list[LinePanel | None] = []
    for instruction in dict.fromkeys(c.quantity.filter.rpartition(" @ ")[0] for c in cells):
        same = [c for c in cells if c.quantity.filter.rpartition(" @ ")[0] == instruction]
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
    figures = grid(*panels, columns="three")
    return [Heading("Toxicity against the prompt's own"), figures] if figures else []


def _prompt_toxicity(cell: Cell) -> float:
    """Return the middle of a part such as `none @ 0.2 to 0.4`."""
    low, high = cell.quantity.filter.rpartition(" @ ")[2].split(" to ")
    return (float(low) + float(high)) / 2


def truthfulness(inputs: ReportInputs) -> Section | None:
    """Return truth, truth with information, and declining together."""
    parts: list[Heading | Figures | None] = [_bars(inputs, "truthfulness", "true")]
    for metric, cells in _by_metric(_of_suite(inputs, "truthfulness")).items():
        parts.append(Heading(capital(named(metric).title)))
        parts.append(grid(*_by_filter(cells, inputs.focus), columns="three"))
    about = "High truth is often silence: read it beside the information and the declining."
    return section("truthfulness", "Truthfulness", about, *parts, link="Truthfulness")


def cost(inputs: ReportInputs) -> Section | None:
    """Return what alignment cost, and what moves scores without merit."""
    loss = _titled_panel(inputs, "pretraining", "loss", "held-out")
    kinds = dict.fromkeys(c.quantity.filter for c in _of_suite(inputs, "responses"))
    parts = sorted(kinds, key=lambda kind: kind != "all")  # test prompts first, then provoked ones
    panels = [_titled_panel(inputs, "responses", m, kind) for m in STYLE for kind in parts]
    about = (
        "What was unlearned: the loss on held-out pretraining text and, where lm-eval ran, public "
        "benchmarks; below each value its change against the first policy, coloured where it is "
        "significant. Length, refusals and repeated answers move scores without any merit, so "
        "they stand here."
    )
    return section(
        "cost", "Cost and style", about, tables.tax(inputs), grid(loss, *panels), link="Cost"
    )


def other_suites(inputs: ReportInputs) -> Section | None:
    """Return every suite that no other section shows, a heading a suite."""
    parts: list[Heading | Figures | None] = []
    for suite in _suites(inputs):
        if suite in WITH_SECTION or _is_toxicity(suite):
            continue
        panels: list[IntervalPanel | None] = []
        for metric, cells in _by_metric(_of_suite(inputs, suite)).items():
            scale, name = scale_of(cells), named(metric)
            for part in dict.fromkeys(c.quantity.filter for c in cells):
                about = name.meaning + (f", {filter_title(part)}" if part != "all" else "")
                panels.append(
                    interval_panel(
                        [c for c in cells if c.quantity.filter == part],
                        title=name.title,
                        about=about.removeprefix(", "),
                        focus=inputs.focus,
                        scale=scale,
                    )
                )
        parts += [Heading(capital(suite_title(suite))), grid(*panels)]
    return section("more", "More measures", "", *parts, link="More")


def _bars(inputs: ReportInputs, suite: str, metric: str) -> Figures | None:
    """Return a measure under each instruction at a glance."""
    cells = [c for c in _of_suite(inputs, suite) if c.quantity.metric == metric]
    kinds = dict.fromkeys(c.quantity.filter for c in cells)
    groups = {filter_title(k): [c for c in cells if c.quantity.filter == k] for k in kinds}
    title = named(metric).title
    panel: BarPanel | None = grouped_bars(
        groups, title=title, about="at a glance", focus=inputs.focus
    )
    return grid(panel, columns="one")


def _by_filter(cells: Sequence[Cell], focus: str) -> list[IntervalPanel | None]:
    """Return a panel for each part of a suite, all on one scale."""
    scale = scale_of(cells)
    return [
        interval_panel(
            [c for c in cells if c.quantity.filter == part],
            title=filter_title(part),
            focus=focus,
            scale=scale,
        )
        for part in dict.fromkeys(c.quantity.filter for c in cells)
    ]


def _titled_panel(inputs: ReportInputs, suite: str, metric: str, part: str) -> IntervalPanel | None:
    name = named(metric)
    about = name.meaning
    if part not in {"all", "held-out"}:
        about += f", {filter_title(part)}"
    cells = _cells(inputs, suite, metric, part)
    return interval_panel(cells, title=name.title, about=about, focus=inputs.focus)


def _cells(inputs: ReportInputs, suite: str, metric: str, part: str) -> list[Cell]:
    """Return the cells of that name, in the order of the models."""
    cells = [inputs.results.cell(model, suite, metric, part) for model in inputs.results.models]
    return [cell for cell in cells if cell is not None]


def _of_suite(inputs: ReportInputs, suite: str) -> list[Cell]:
    return [cell for cell in inputs.results.cells if cell.quantity.suite == suite]


def _by_metric(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    metrics = dict.fromkeys(cell.quantity.metric for cell in cells)
    return {metric: [c for c in cells if c.quantity.metric == metric] for metric in metrics}


def _suites(inputs: ReportInputs) -> list[str]:
    return list(dict.fromkeys(cell.quantity.suite for cell in inputs.results.cells))


def _is_toxicity(suite: str) -> bool:
    return suite.split("_")[0] == "toxicity"
