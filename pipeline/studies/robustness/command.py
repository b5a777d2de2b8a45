"""`rlhf evaluate --suite robustness`: load the config, run the suite, write the page.

robustness.html shows families in and out of the domain they were trained on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pipeline.config.loading import load_mapping, validated
from pipeline.config.messages import require
from pipeline.config.shipped import configs_folder
from pipeline.evaluation.samples.tables import Cell
from pipeline.evaluation.scorers.gold import GOLD
from pipeline.report.figures import Axis, Figure, Strokes, round_ticks
from pipeline.report.render import group, write_page
from pipeline.report.words import Name, capital
from pipeline.runs.display import display
from pipeline.studies.robustness.config import FULL, QuickstartDomains, RobustnessConfig
from pipeline.studies.robustness.suite import (
    BASE,
    IN,
    LIKELIHOOD,
    OUT,
    ROUGE,
    Robustness,
    run_suite,
)

QUICKSTART = Path("robustness/quickstart.yaml")


def load_robustness(path: Path, overrides: Sequence[str]) -> RobustnessConfig:
    """Return the config of a YAML file with overrides; ValueError naming file and key."""
    return validated(RobustnessConfig, values=load_mapping(path, overrides), where=f"{path}: ")


def robustness(path: Path | None, overrides: Sequence[str], out: Path | None) -> Path:
    """Run the suite and return the page's path; without a config, the quickstart's is used."""
    config = load_robustness(path or configs_folder() / QUICKSTART, overrides)
    require("benchmarks", "rouge_score", "sacrebleu")
    folder = out or Path("runs") / config.name
    folder.mkdir(parents=True, exist_ok=True)
    with display([BASE, *config.families]) as progress:
        results = run_suite(config, folder, progress)
    page = folder / "robustness.html"
    write_robustness_page(page, config, results)
    return page


METRICS = {
    "correct": Name("correct answers", True, 1, f"by the {GOLD}; more is better"),
    "rouge_l": Name("ROUGE-L", False, 3, f"F, best of the references, {ROUGE}; more is better"),
    "nats_per_token": Name(
        "reference's loss", False, 3, f"nats per token, {LIKELIHOOD}; less is better"
    ),
}
NAME_WIDTH, NAME_HEIGHT = 14.0, 6.0  # in percent of the panel


def write_robustness_page(path: Path, config: RobustnessConfig, results: Robustness) -> None:
    """Write the page."""
    metrics = [metric for metric in METRICS if results.cell(FULL, IN, metric)]
    write_page(
        path,
        "robustness.html.j2",
        name="Robustness out of domain",
        config=config,
        results=results,
        is_synthetic=isinstance(config.data, QuickstartDomains),
        families=[BASE, *config.families],
        inside=IN,
        outside=OUT,
        names=METRICS,
        metrics=metrics,
        figures=group(*(_panel(config, results, metric) for metric in metrics)),
    )


@dataclass(frozen=True, slots=True)
class Spot:
    """One family: its share of parameters (0 to 1) and its cells in and out of the domain."""

    name: str
    share: float
    inside: Cell
    outside: Cell


@dataclass(frozen=True, slots=True)
class SharePanel(Figure):
    """Families at their share of trained parameters, on a logarithmic axis."""

    kind: ClassVar[str] = "shares"
    about: str
    grid: Sequence[tuple[float, str]]
    strokes: Sequence[Strokes]
    names: Sequence[tuple[str, float, float]]  # name, left, top
    powers: Sequence[tuple[float, str]]


def _panel(config: RobustnessConfig, results: Robustness, metric: str) -> SharePanel | None:
    """Return a panel of the families that trained anything."""
    title, about = METRICS[metric].title, METRICS[metric].meaning
    spots = []
    for family in config.families:
        inside, outside = results.cell(family, IN, metric), results.cell(family, OUT, metric)
        if inside is not None and outside is not None:
            spots.append(Spot(family, results.share(family), inside, outside))
    spots = sorted((spot for spot in spots if spot.share > 0), key=lambda spot: spot.share)
    if not spots:
        return None
    logs = [math.log10(spot.share) for spot in spots]
    left, right = math.floor(min(logs)), max(0, math.ceil(max(logs)))
    ends = [end for spot in spots for cell in (spot.inside, spot.outside) for end in cell.ci95]
    low, high = min(ends), max(ends) + 0.2 * (max(ends) - min(ends))  # room for the names
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    ticks = round_ticks(low, high, 4)

    def across(share: float) -> float:
        return 4 + 92 * (math.log10(share) - left) / max(1, right - left)

    def down(value: float) -> float:
        return 100 - 100 * (value - ticks[0]) / (ticks[-1] - ticks[0])

    numbers = "; ".join(
        f"{spot.name} {spot.inside.value:.3g} in, {spot.outside.value:.3g} out of domain"
        for spot in spots
    )
    return SharePanel(
        title=capital(title),
        about=about,
        description=f"{title}: {numbers}",
        grid=[(down(tick), f"{tick:g}") for tick in ticks],
        strokes=[
            _spot_strokes(cell, across(spot.share) + shift, down, accent)
            for spot in spots
            for cell, accent, shift in ((spot.inside, True, -0.6), (spot.outside, False, 0.6))
        ],
        names=_family_names(spots, across, down),
        powers=[
            (across(10.0**power), f"{100 * 10.0**power:g} %") for power in range(left, right + 1)
        ],
    )


def _spot_strokes(cell: Cell, x: float, down: Axis, accent: bool) -> Strokes:
    low, high = (down(end) for end in cell.ci95)
    spans, spots = f"M{x:.2f} {low:.2f}V{high:.2f}", f"M{x:.2f} {down(cell.value):.2f}h0"
    return Strokes(accent, spans=spans, spots=spots)


def _family_names(
    spots: Sequence[Spot], across: Axis, down: Axis
) -> list[tuple[str, float, float]]:
    """Return names above each family's upper interval, moved up where two would overlap."""
    names: list[tuple[str, float, float]] = []
    for spot in spots:
        x = across(spot.share)
        top = min(down(end) for cell in (spot.inside, spot.outside) for end in cell.ci95)
        y = top - NAME_HEIGHT / 2 - 1
        while any(
            abs(x - left) < NAME_WIDTH and abs(y - above) < NAME_HEIGHT for _, left, above in names
        ):
            y -= NAME_HEIGHT
        names.append((spot.name, x, y))
    return names
