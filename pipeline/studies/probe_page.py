"""probe.html: accuracy by layer, with intervals and the control, as one self-contained page."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.report.figures import Curve, line_panel
from pipeline.report.layout import Figures, Page, Row, Table, grid, section, write_page
from pipeline.report.words import MINUS, MISSING, Name, interval, number, p_text
from pipeline.studies.probing import Probe, comparisons

SHARE = Name("accuracy", True, 1)
POOLED = {"cls": "first token", "last": "last token", "mean": "mean"}
KICKER = "What a frozen model holds, layer by layer"
ABOUT = (
    "Layer 0 is the embeddings. Strokes are 95 % intervals over test texts; the dashed level is "
    "the most frequent label's share. The control is a random label a text, fitted by the same "
    "probe: what it reaches is memory, and accuracy minus control is selectivity "
    "(Hewitt & Liang 2019)."
)
HEADS = ("layer", "pooling", "accuracy (95 %)", "on training texts", "control", "selectivity")
COMPARED_HEADS = ("layer", "paired by text", "difference", "McNemar's p")


def write_probe_page(
    path: Path, *, model: str, probes: Sequence[Probe], majority: float, n: tuple[int, int]
) -> None:
    """Write the page; `n` are the numbers of training and test texts."""
    best = max(probes, key=lambda probe: probe.accuracy)
    under = (
        f"Best of these test texts: layer {best.layer}, {POOLED[best.pooling]}: "
        f"{number(best.accuracy, SHARE)} ({interval(*best.ci95, SHARE)}), n = {n[1]}; "
        f"the most frequent label alone gives {number(majority, SHARE)}. Fitted on {n[0]} texts."
    )
    sections = (
        section("layers", "Accuracy by layer", ABOUT, _figures(probes, majority)),
        section("numbers", "Numbers", "", _table(probes), _compared(probes)),
    )
    title = f"Probe of {_short(model)}"
    write_page(Page(title, title, KICKER, under, [one for one in sections if one]), path)


def _short(model: str) -> str:
    """Return the last part of a path that names a model."""
    parts = [part for part in Path(model).parts if part != "model"]
    return parts[-1] if parts else model


def _figures(probes: Sequence[Probe], majority: float) -> Figures | None:
    best = max(probes, key=lambda probe: probe.accuracy).pooling
    accuracy = line_panel(
        _curves(probes, lambda probe: probe.accuracy, best, spans=True),
        title="Accuracy on test texts",
        x_title="layer",
        from_zero=True,
        reference=majority,
        tall=True,
    )
    controlled = [probe for probe in probes if probe.control_accuracy is not None]
    others = [
        line_panel(_curves(controlled, value, best), title=title, x_title="layer", tall=True)
        for value, title in (
            (lambda probe: probe.control_accuracy or 0.0, "Control task"),
            (lambda probe: probe.selectivity or 0.0, "Selectivity"),
        )
    ]
    return grid(accuracy, *others)


def _curves(
    probes: Sequence[Probe], value: Callable[[Probe], float], best: str, *, spans: bool = False
) -> list[Curve]:
    """Return a curve over layers for each pooling; the best pooling's has the accent."""
    curves = []
    for pooling in dict.fromkeys(probe.pooling for probe in probes):
        own = [probe for probe in probes if probe.pooling == pooling]
        points = [(float(probe.layer), value(probe)) for probe in own]
        intervals = [probe.ci95 for probe in own] if spans else []
        curves.append(Curve(POOLED[pooling], points, pooling == best, dots=True, spans=intervals))
    return curves


def _table(probes: Sequence[Probe]) -> Table:
    rows: list[Row] = [
        [
            str(probe.layer),
            POOLED[probe.pooling],
            f"{number(probe.accuracy, SHARE)} ({interval(*probe.ci95, SHARE)})",
            number(probe.training_accuracy, SHARE),
            _or_dash(probe.control_accuracy),
            _or_dash(probe.selectivity),
        ]
        for probe in probes
    ]
    return Table(HEADS, rows)


def _compared(probes: Sequence[Probe]) -> Table | None:
    rows: list[Row] = [
        [
            str(row["layer"]),
            f"{POOLED[row['a']]} {MINUS} {POOLED[row['b']]}",
            number(row["difference"], SHARE),
            p_text(row["p_mcnemar"]),
        ]
        for row in comparisons(probes)
    ]
    return Table(COMPARED_HEADS, rows) if rows else None


def _or_dash(value: float | None) -> str:
    return MISSING if value is None else number(value, SHARE)
