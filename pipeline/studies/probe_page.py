"""probe.html: accuracy by layer, with intervals and the control, as one self-contained page."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.report.figures import Curve, line_panel
from pipeline.report.render import Group, group, write_page
from pipeline.report.words import Name
from pipeline.studies.probing import Probe, comparisons

POOLED = {"cls": "first token", "last": "last token", "mean": "mean"}


def write_probe_page(
    path: Path, *, model: str, probes: Sequence[Probe], majority: float, n: tuple[int, int]
) -> None:
    """Write the page; `n` are the numbers of training and test texts."""
    best = max(probes, key=lambda probe: probe.accuracy)
    write_page(
        path,
        "probe.html.j2",
        name=f"Probe of {_short(model)}",
        share=Name("accuracy", True, 1),
        pooled=POOLED,
        best=best,
        majority=majority,
        num_training=n[0],
        num_test=n[1],
        probes=probes,
        compared=comparisons(probes),
        figures=_figures(probes, best.pooling, majority),
    )


def _short(model: str) -> str:
    """Return the last part of a path that names a model."""
    parts = [part for part in Path(model).parts if part != "model"]
    return parts[-1] if parts else model


def _figures(probes: Sequence[Probe], best: str, majority: float) -> Group:
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
    return group(accuracy, *others)


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
