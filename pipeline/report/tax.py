"""What alignment cost: a row a benchmark, a column a policy, changes against the base."""

from html import escape

from pipeline.evaluation.samples.comparisons import Comparison
from pipeline.evaluation.samples.tables import Cell, Quantity
from pipeline.report.inputs import ReportInputs
from pipeline.report.words import capital, filter_title, interval, named, number

TAX = ("tax", "pretraining")


def tax_table(inputs: ReportInputs) -> str:
    """Each policy's value, and below it its paired change against the first policy."""
    rows = tax_rows(inputs)
    if not rows:
        return ""
    models = inputs.results.models
    head = "".join(f'<th scope="col">{escape(model)}</th>' for model in models)
    body = "".join(_row(quantity, inputs) for quantity in rows)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Alignment tax">'
        f'<table class="summary tax"><thead><tr><th scope="col">benchmark</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def tax_rows(inputs: ReportInputs) -> list[Quantity]:
    """What the table holds a row of."""
    found = [cell.quantity for cell in inputs.results.cells if cell.quantity.suite in TAX]
    return list(dict.fromkeys(found))


def _row(quantity: Quantity, inputs: ReportInputs) -> str:
    key = (quantity.suite, quantity.metric, quantity.filter)
    base = inputs.results.models[0]
    cells = "".join(
        _cell(
            inputs.results.cell(model, *key),
            inputs.results.comparison(model, base, *key),
        )
        for model in inputs.results.models
    )
    title = capital(f"{filter_title(quantity.filter)}, {named(quantity.metric).title}")
    better = {"higher": "more is better", "lower": "less is better"}.get(quantity.better or "", "")
    return f'<tr><th scope="row">{escape(title)}<small>{better}</small></th>{cells}</tr>'


def _cell(cell: Cell | None, change: Comparison | None) -> str:
    if cell is None:
        return "<td>&ndash;</td>"
    name = named(cell.quantity.metric)
    value = f"{number(cell.value, name)}<small>{interval(*cell.ci95, name)}</small>"
    if change is None:
        return f"<td>{value}</td>"
    sign = "+" if change.diff > 0 else ""
    said = f"{sign}{number(change.diff, name, unit=False)} ({interval(*change.ci95, name)})"
    shown = "" if change.verdict == "no difference shown" else ' class="shown"'
    return f"<td>{value}<em{shown}>{said}</em></td>"
