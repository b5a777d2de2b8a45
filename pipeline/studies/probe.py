"""`rlhf probe`: load and check the texts, fit the probes, write the page.

probe.html is one self-contained page: accuracy by layer, with intervals and the control.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.models.policies import policy_folder
from pipeline.report.figures import Curve, line_panel
from pipeline.report.render import Group, group, write_page
from pipeline.report.words import Name
from pipeline.runs.display import display
from pipeline.studies.probing import (
    Probe,
    ProbeSettings,
    comparisons,
    labels_of,
    load_labelled_texts,
    majority_share,
    run_probe,
    split_off,
)
from stages.probing import POOLINGS, Pooling, load_frozen

TEST_SHARE = 0.2  # where no test set is named


def probe(
    model: str,
    data: str,
    test: str | None,
    fields: tuple[str, str],
    settings: ProbeSettings,
    layers: str,
    out: Path,
) -> Path:
    """Fit the probes, write the folder, return the page's path.

    ValueError for bad input comes before any model loads.
    """
    settings = replace(settings, layers=_layers(layers))
    train = load_labelled_texts(data, text=fields[0], label=fields[1])
    if test is None:
        train, held_out = split_off(train, TEST_SHARE, settings.seed)
    else:
        held_out = load_labelled_texts(test, text=fields[0], label=fields[1])
    unknown = sorted(set(labels_of(held_out)) - set(labels_of(train)))
    if unknown:
        raise ValueError(
            f"{test or data}: label '{unknown[0]}' is among the test texts but not among those "
            "to fit on"
        )
    out.mkdir(parents=True, exist_ok=True)
    with display(["load", "read", "fit"]) as progress:
        progress.begin("load", model)
        folder = Path(model)  # a folder that holds a model is taken as it is, a run for its policy
        frozen = load_frozen(str(policy_folder(folder)) if folder.is_dir() else model)
        progress.finish("")
        probes = run_probe(frozen, train, held_out, settings, out, progress)
        best = max(probes, key=lambda one: one.accuracy)
        progress.print(
            f"Best: layer {best.layer}, {best.pooling}: {best.accuracy:.3f} "
            f"[{best.ci95[0]:.3f}, {best.ci95[1]:.3f}] of {len(held_out)} test texts"
        )
    page = out / "probe.html"
    sizes = (len(train), len(held_out))
    majority = majority_share(held_out)
    write_probe_page(page, model=model, probes=probes, majority=majority, n=sizes)
    return page


def _layers(text: str) -> tuple[int, ...]:
    """Return the layers of `all`, or of numbers such as 0,3,6 or 0-30:3; ValueError otherwise."""
    if text == "all":
        return ()
    layers: set[int] = set()
    for part in text.split(","):
        ends, _, step = part.partition(":")
        first, _, last = ends.partition("-")
        try:
            layers |= set(range(int(first), int(last or first) + 1, int(step or 1)))
        except ValueError:
            raise ValueError(f"--layers {text}: expected all, or such as 0,3,6 or 0-30:3") from None
    if not layers:
        raise ValueError(f"--layers {text}: no layer in it")
    return tuple(sorted(layers))


def chosen_poolings(text: str) -> tuple[Pooling, ...]:
    """Return the poolings in `a,b`; none for an empty text, ValueError for an unknown one."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    known = [pooling for name in names for pooling in POOLINGS if pooling == name]
    if len(known) < len(names):
        wrong = next(name for name in names if name not in POOLINGS)
        raise ValueError(f"--pooling {wrong}: expected of {', '.join(POOLINGS)}")
    return tuple(dict.fromkeys(known))


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
