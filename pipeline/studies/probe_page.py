"""probe.html: accuracy by layer, with intervals and the control, as one self-contained page."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from pipeline.report.lines import Curve, line_panel
from pipeline.report.page import small_page
from pipeline.report.sections import grid, section
from pipeline.report.words import MINUS, MISSING, Name, interval, number, p_text
from pipeline.studies.probing import Probe, comparisons

SHARE = Name("accuracy", True, 1)
POOLED = {"cls": "first token", "last": "last token", "mean": "mean"}


def write_probe_page(
    path: Path, *, model: str, found: Sequence[Probe], majority: float, n: tuple[int, int]
) -> None:
    """Write the page aside and rename it; `n` are the numbers of training and test texts."""
    best = max(found, key=lambda probe: probe.accuracy)
    under = (
        f"Best of these test texts: layer {best.layer}, {POOLED[best.pooling]}: "
        f"{number(best.accuracy, SHARE)} ({interval(*best.ci95, SHARE)}), n = {n[1]}; "
        f"always saying the most frequent label gives {number(majority, SHARE)}. "
        f"Fitted on {n[0]} texts."
    )
    body = section("layers", "Accuracy by layer", ABOUT, _figures(found, majority))
    body += section("numbers", "Numbers", "", _table(found), _compared(found))
    text = small_page(title=f"Probe of {_short(model)}", kicker=KICKER, under=under, body=body)
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def _short(model: str) -> str:
    """The last part of a path that says something."""
    parts = [part for part in Path(model).parts if part != "model"]
    return parts[-1] if parts else model


KICKER = "What a frozen model holds, layer by layer"
ABOUT = (
    "Layer 0 is the embeddings. Strokes are 95 % intervals over test texts; the dashed level is "
    "the most frequent label's share. The control is a random label a text, fitted by the same "
    "probe: what it reaches is memory, and accuracy minus control is selectivity "
    "(Hewitt &amp; Liang 2019)."
)


def _figures(found: Sequence[Probe], majority: float) -> str:
    poolings = list(dict.fromkeys(probe.pooling for probe in found))
    best = max(found, key=lambda probe: probe.accuracy).pooling
    curves = [_curve(found, pooling, accent=pooling == best) for pooling in poolings]
    panels = [
        line_panel(
            curves,
            title="Accuracy on test texts",
            x_title="layer",
            from_zero=True,
            reference=majority,
            tall=True,
        )
    ]
    for value, title in ((_control, "Control task"), (_selectivity, "Selectivity")):
        lines = [
            Curve(
                POOLED[pooling],
                [
                    (float(probe.layer), value(probe))
                    for probe in found
                    if probe.pooling == pooling and probe.control_accuracy is not None
                ],
                accent=pooling == best,
                dots=True,
            )
            for pooling in poolings
        ]
        panels.append(line_panel(lines, title=title, x_title="layer", tall=True))
    return grid(*panels)


def _curve(found: Sequence[Probe], pooling: str, *, accent: bool) -> Curve:
    mine = [probe for probe in found if probe.pooling == pooling]
    points = [(float(probe.layer), probe.accuracy) for probe in mine]
    spans = [probe.ci95 for probe in mine]
    return Curve(POOLED[pooling], points, accent=accent, dots=True, spans=spans)


def _control(probe: Probe) -> float:
    return probe.control_accuracy or 0.0


def _selectivity(probe: Probe) -> float:
    return probe.selectivity or 0.0


def _table(found: Sequence[Probe]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{probe.layer}</th><td>{POOLED[probe.pooling]}</td>'
        f"<td>{number(probe.accuracy, SHARE)} ({interval(*probe.ci95, SHARE)})</td>"
        f"<td>{number(probe.training_accuracy, SHARE)}</td><td>{_or_dash(probe.control_accuracy)}"
        f"</td><td>{_or_dash(probe.selectivity)}</td></tr>"
        for probe in found
    )
    heads = ("layer", "pooling", "accuracy (95 %)", "on training texts", "control", "selectivity")
    return _drawn(heads, rows)


def _compared(found: Sequence[Probe]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{row["layer"]}</th><td>{POOLED[row["a"]]} {MINUS} '
        f"{POOLED[row['b']]}</td><td>{number(row['difference'], SHARE)}</td>"
        f"<td>{p_text(row['p_mcnemar'])}</td></tr>"
        for row in comparisons(found)
    )
    return _drawn(("layer", "paired by text", "difference", "McNemar's p"), rows) if rows else ""


def _drawn(heads: Sequence[str], rows: str) -> str:
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _or_dash(value: float | None) -> str:
    return MISSING if value is None else number(value, SHARE)
