"""Toxicity against the prompt's own toxicity, a curve a policy (figure 39 of the paper)."""

from pipeline.evaluation.samples.tables import Cell
from pipeline.evaluation.suites.by_prompt import SUITE as BY_PROMPT
from pipeline.report.inputs import ReportInputs
from pipeline.report.lines import Curve, line_panel
from pipeline.report.words import filter_title

_MOST_CURVES = 6  # more names than that do not fit beside their ends


def by_prompt_toxicity(inputs: ReportInputs) -> str:
    """Curves of mean toxicity over the prompt's own, one panel an instruction (figure 39)."""
    cells = [c for c in inputs.results.cells if c.quantity.suite == BY_PROMPT]
    models = list(dict.fromkeys(c.model for c in cells))
    if not cells or len(models) > _MOST_CURVES:
        return ""
    panels = []
    for kind in dict.fromkeys(c.quantity.filter.rpartition(" @ ")[0] for c in cells):
        mine = [c for c in cells if c.quantity.filter.rpartition(" @ ")[0] == kind]
        curves = [
            Curve(
                model,
                [(_middle(c), c.value) for c in mine if c.model == model],
                accent=model == inputs.focus,
                dots=True,
                spans=[c.ci95 for c in mine if c.model == model],
            )
            for model in models
        ]
        panels.append(
            line_panel(
                curves, title=filter_title(kind), x_title="toxicity of the prompt", from_zero=True
            )
        )
    if not any(panels):
        return ""
    title = "<h3>Toxicity against the prompt's own</h3>"
    return f'{title}<div class="panels three">{"".join(panels)}</div>'


def _middle(cell: Cell) -> float:
    low, high = cell.quantity.filter.rpartition(" @ ")[2].split(" to ")
    return (float(low) + float(high)) / 2
