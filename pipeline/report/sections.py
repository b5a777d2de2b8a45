"""The sections about what policies say: preference, use cases, hallucination, toxicity, cost."""

from html import escape

from pipeline.evaluation.samples.tables import Cell
from pipeline.report.forest import Scale, interval_panel, scale_of
from pipeline.report.inputs import ReportInputs
from pipeline.report.summary import Line, summary_lines, verdict_text
from pipeline.report.tax import tax_table
from pipeline.report.words import capital, filter_title, interval, named, number

_TILES = (
    ("preference", "win_rate", "all"),
    ("hallucination", "hallucination", "all"),
    ("toxicity", "toxicity", "none"),
    ("pretraining", "loss", "held-out"),
)


def section(anchor: str, title: str, about: str, *parts: str) -> str:
    """A section with a heading and a sentence, or nothing if all of its parts are empty."""
    if not any(parts):
        return ""
    lead = f'<p class="about">{about}</p>' if about else ""
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>{lead}{"".join(parts)}</section>'


def grid(*panels: str, columns: str = "two") -> str:
    """Panels side by side, two or three in a row where there is room."""
    kept = [panel for panel in panels if panel]
    return f'<div class="panels {columns}">{"".join(kept)}</div>' if kept else ""


def headline(inputs: ReportInputs) -> str:
    """Four numbers of the last policy, each beside those it has to be compared with."""
    if inputs.focus in {"", inputs.baseline}:
        return ""
    tiles = "".join(_tile(inputs, *key) for key in _TILES)
    return f'<div class="tiles">{tiles}</div>' if tiles else ""


def _tile(inputs: ReportInputs, suite: str, metric: str, part: str) -> str:
    cell = inputs.results.cell(inputs.focus, suite, metric, part)
    if cell is None:
        return ""
    name = named(metric)
    others = [c for c in cells_of(inputs, suite, metric, part) if c.model != inputs.focus]
    if metric == "win_rate":
        title, beside = f"preferred to {inputs.baseline}", f"{cell.n} test prompts, ties half"
    else:
        title = name.title + (f", {filter_title(part)}" if part == "none" else "")
        beside = " · ".join(f"{escape(c.model)} {number(c.value, name)}" for c in others)
    against = [
        inputs.results.comparison(inputs.focus, c.model, suite, metric, part) for c in others
    ]
    kept = [c for c in against if c and (metric != "win_rate" or c.b == inputs.baseline)]
    verdicts = "".join(
        f"<em>{verdict_text(c)}{'' if metric == 'win_rate' else f' against {escape(c.b)}'}</em>"
        for c in kept
    )
    return (
        f'<div class="tile"><span>{escape(capital(title))}</span><b>{number(cell.value, name)}</b>'
        f"<i>{interval(*cell.ci95, name)}</i><small>{beside}</small>{verdicts}</div>"
    )


def summary(inputs: ReportInputs) -> str:
    """The table of the terminal's end."""
    lines = summary_lines(inputs.results)
    models = inputs.results.models
    compared = any(line.against_baseline for line in lines)
    head = "".join(f'<th scope="col">{escape(model)}</th>' for model in models)
    last = f'<th scope="col">{escape(inputs.focus)} against {escape(inputs.baseline)}</th>'
    body = "".join(_summary_row(line, compared) for line in lines)
    return section(
        "summary",
        "In short",
        "Estimates with 95 % intervals. A change is named only if its interval leaves out zero and "
        "Holm's p is below .05.",
        '<div class="scroll" tabindex="0" role="region" aria-label="Summary table">'
        f'<table class="summary{" compared" if compared else ""}">'
        f'<thead><tr><th scope="col">measure</th>{head}{last if compared else ""}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>",
    )


def _summary_row(line: Line, compared: bool) -> str:
    cells = "".join(
        f"<td>{'&ndash;' if cell is None else _two_lines(cell)}</td>" for cell in line.cells
    )
    verdict = f'<td class="verdict">{verdict_text(line.against_baseline)}</td>' if compared else ""
    return f'<tr><th scope="row">{escape(line.title)}</th>{cells}{verdict}</tr>'


def _two_lines(cell: Cell) -> str:
    name = named(cell.quantity.metric)
    return f"{number(cell.value, name)}<small>{interval(*cell.ci95, name)}</small>"


def preference(inputs: ReportInputs) -> str:
    """Win rates against the baseline, by the judge and by the reward model."""
    panels = []
    for suite, by, hollow in (
        ("preference", "by the gold judge", False),
        ("preference_by_reward_model", "by the reward model: not independent", True),
    ):
        cells = [
            c for c in cells_of(inputs, suite, "win_rate", "all") if c.model != inputs.baseline
        ]
        panels.append(
            interval_panel(
                cells, title=by, focus=inputs.focus, reference=0.5, hollow=hollow,
                scale=Scale(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0)),
            )
        )  # fmt: skip
    about = (
        f"Share of test prompts on which a policy's response beats {escape(inputs.baseline)}'s; "
        "ties count half. PPO was trained to please the reward model: its verdict is no evidence."
    )
    return section("preference", "Preference", about, grid(*panels))


def use_cases(inputs: ReportInputs) -> str:
    """The judge's score in each use case, all on one scale."""
    cells = [c for c in inputs.results.cells if _is(c, "use_cases", "gold")]
    kinds = [kind for kind in dict.fromkeys(c.quantity.filter for c in cells) if kind != "all"]
    scale = scale_of([c for c in cells if c.quantity.filter in kinds]) if kinds else None
    panels = [
        interval_panel(
            cells_of(inputs, "use_cases", "gold", kind),
            title=filter_title(kind), focus=inputs.focus, scale=scale,
        )
        for kind in kinds
    ]  # fmt: skip
    about = (
        "Gold score by use case: what the judge, which knows the facts, gives a response (about "
        "-2 to 1). A gain in the mean that hides a loss here would be no gain."
    )
    return section("use-cases", "Use cases", about, grid(*panels))


def hallucination(inputs: ReportInputs) -> str:
    """The headline rate and its parts."""
    order = (
        "hallucination", "hallucinated", "answered_unanswerable", "false_abstention",
        "correct_answerable", "unsupported", "novel_bigrams",
    )  # fmt: skip
    panels = [_titled_panel(inputs, "hallucination", metric, "all") for metric in order]
    about = (
        "On prompts that come with a passage. Hallucination is a fact that the passage does not "
        "hold, or any answer to a question that it does not answer; declining where the passage "
        "does answer is a false abstention. Neither may be bought with the other."
    )
    return section("hallucination", "Hallucination", about, grid(*panels))


def cost(inputs: ReportInputs) -> str:
    """What alignment cost, and what moves scores without merit."""
    loss = _titled_panel(inputs, "pretraining", "loss", "held-out")
    style = ("tokens", "words", "eos_rate", "refusal", "repeated_answer", "most_frequent_answer")
    kinds = dict.fromkeys(
        c.quantity.filter for c in inputs.results.cells if c.quantity.suite == "responses"
    )
    parts = sorted(kinds, key=lambda kind: kind != "all")  # test prompts first, then provoked ones
    panels = [_titled_panel(inputs, "responses", m, kind) for m in style for kind in parts]
    about = (
        "What was unlearned: the loss on held-out pretraining text and, where lm-eval ran, public "
        "benchmarks; below each value its change against the first policy, coloured where shown. "
        "Length, refusals and repeated answers move scores without any merit, so they stand here."
    )
    return section("cost", "Cost and style", about, tax_table(inputs), grid(loss, *panels))


def _titled_panel(inputs: ReportInputs, suite: str, metric: str, part: str) -> str:
    name = named(metric)
    about = name.meaning
    if part not in {"all", "held-out"}:
        about += f", {filter_title(part)}"
    cells = cells_of(inputs, suite, metric, part)
    return interval_panel(cells, title=name.title, about=about, focus=inputs.focus)


def cells_of(inputs: ReportInputs, suite: str, metric: str, part: str) -> list[Cell]:
    """The cells of that name, in the order of the models."""
    found = [inputs.results.cell(model, suite, metric, part) for model in inputs.results.models]
    return [cell for cell in found if cell is not None]


def _is(cell: Cell, suite: str, metric: str) -> bool:
    return (cell.quantity.suite, cell.quantity.metric) == (suite, metric)
