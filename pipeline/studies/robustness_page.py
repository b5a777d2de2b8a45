"""robustness.html: families in and out of the domain they were trained on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pipeline.evaluation.samples.tables import Cell
from pipeline.evaluation.scorers.gold import GOLD
from pipeline.report.figures import Axis, Figure, Strokes, round_ticks
from pipeline.report.layout import Page, Row, Table, grid, section, write_page
from pipeline.report.words import MISSING, Name, capital, interval, number, p_text
from pipeline.studies.robustness.config import FULL, QuickstartDomains, RobustnessConfig
from pipeline.studies.robustness.references import LIKELIHOOD, ROUGE
from pipeline.studies.robustness.suite import BASE, IN, OUT, Robustness

METRICS = {
    "correct": Name("correct answers", True, 1, f"by the {GOLD}; more is better"),
    "rouge_l": Name("ROUGE-L", False, 3, f"F, best of the references, {ROUGE}; more is better"),
    "nats_per_token": Name(
        "reference's loss", False, 3, f"nats per token, {LIKELIHOOD}; less is better"
    ),
}
NAME_WIDTH, NAME_HEIGHT = 14.0, 6.0  # in percent of the panel
ABOUT = (
    "Every family was trained on demonstrations of one domain alone. Coloured dots are its answers "
    "to new prompts of that domain, grey ones those to prompts of another; strokes are 95 % "
    "intervals over prompts."
)
QUICKSTART = (
    "Synthetic data: people, places and phrasings of the invented world's training side, against "
    "those of its test side."
)
NUMBERS = (
    "Differences are from full fine-tuning on the same prompts; p is a sign-flip test's, corrected "
    "by Holm over all families of a measure and domain."
)
BLEU = "BLEU is the whole set's, 0 to 100, its interval over resampled prompts."


def write_robustness_page(path: Path, config: RobustnessConfig, results: Robustness) -> None:
    """Write the page."""
    families = [BASE, *config.families]
    seeds = f"seed{'s' if len(config.seeds) > 1 else ''} {', '.join(map(str, config.seeds))}"
    synthetic = QUICKSTART if isinstance(config.data, QuickstartDomains) else ""
    under = f"{config.model}, {len(config.families)} families, {seeds}. {synthetic}"
    metrics = [metric for metric in METRICS if results.cell(FULL, IN, metric)]
    panels = [_panel(config, results, metric) for metric in metrics]
    tables = [_table(results, families, metric) for metric in metrics]
    sections = (
        section("figure", "In and out of the domain", ABOUT, grid(*panels)),
        section("numbers", "Numbers", NUMBERS, *tables),
        section("bleu", "BLEU and cost", BLEU, _costs(results, families)),
    )
    title, kicker = "Robustness out of domain", "What each family learns beyond its data"
    write_page(Page(title, title, kicker, under, [one for one in sections if one]), path)


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


def share_panel(spots: Sequence[Spot], *, title: str, about: str) -> SharePanel | None:
    """Return a panel of the families that trained anything."""
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


def _panel(config: RobustnessConfig, results: Robustness, metric: str) -> SharePanel | None:
    spots = []
    for family in config.families:
        inside, outside = results.cell(family, IN, metric), results.cell(family, OUT, metric)
        if inside is not None and outside is not None:
            spots.append(Spot(family, results.share(family), inside, outside))
    return share_panel(spots, title=METRICS[metric].title, about=METRICS[metric].meaning)


def _table(results: Robustness, families: Sequence[str], metric: str) -> Table:
    title = METRICS[metric].title
    changes = [f"minus full, {domain}" for domain in (IN, OUT)]
    heads = ("family", "share trained", f"{title}, {IN}", OUT, *changes)
    rows: list[Row] = [
        [
            family,
            f"{100 * share:.3g} %" if (share := results.share(family)) else MISSING,
            *(_value(results.cell(family, domain, metric)) for domain in (IN, OUT)),
            *(_difference(results, family, domain, metric) for domain in (IN, OUT)),
        ]
        for family in families
    ]
    return Table(heads, rows)


def _value(cell: Cell | None) -> str:
    if cell is None:
        return MISSING
    name = METRICS[cell.quantity.metric]
    return f"{number(cell.value, name)} ({interval(*cell.ci95, name)})"


def _difference(results: Robustness, family: str, domain: str, metric: str) -> str:
    name = METRICS[metric]
    for one in results.differences:
        if (one.a, one.quantity.suite, one.quantity.metric) == (family, domain, metric):
            difference = f"{number(one.diff, name, unit=False)} ({interval(*one.ci95, name)})"
            return f"{difference}, p {p_text(one.p_holm)}"
    return MISSING


def _costs(results: Robustness, families: Sequence[str]) -> Table:
    rows: list[Row] = []
    for family in families:
        trained = [one for one in results.trained if one.family == family]
        minutes = sum(one.seconds for one in trained) / len(trained) / 60
        bleu = [results.bleu[family][domain] for domain in (IN, OUT)]
        scores = [f"{value:.1f} ({low:.1f} to {high:.1f})" for value, (low, high) in bleu]
        rows.append([family, f"{trained[0].trainable:,}", *scores, f"{minutes:.1f}"])
    heads = ("family", "parameters trained", f"BLEU, {IN}", f"BLEU, {OUT}", "minutes to train")
    return Table(heads, rows)
