"""robustness.html: families in and out of the domain they were trained on."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from pipeline.evaluation.samples.tables import Cell
from pipeline.evaluation.scorers.gold import GOLD
from pipeline.report.page import small_page
from pipeline.report.sections import grid, section
from pipeline.report.shares import Spot, share_panel
from pipeline.report.words import MISSING, Name, interval, number, p_text
from pipeline.studies.robustness.config import FULL, QuickstartDomains, RobustnessConfig
from pipeline.studies.robustness.family import BASE, IN, OUT
from pipeline.studies.robustness.references import LIKELIHOOD, ROUGE
from pipeline.studies.robustness.suite import Robustness

NAMED = {
    "correct": Name("correct answers", True, 1, f"by the {GOLD}; more is better"),
    "rouge_l": Name("ROUGE-L", False, 3, f"F, best of the references, {ROUGE}; more is better"),
    "nats_per_token": Name(
        "reference's loss", False, 3, f"nats per token, {LIKELIHOOD}; less is better"
    ),
}
ABOUT = (
    "Every family was trained on demonstrations of one domain alone. Coloured dots are its answers "
    "to new prompts of that domain, grey ones those to prompts of another; strokes are 95 % "
    "intervals over prompts."
)


def write_robustness_page(path: Path, config: RobustnessConfig, found: Robustness) -> None:
    """Write the page aside and rename it."""
    families = [BASE, *config.families]
    under = (
        f"{config.model}, {len(config.families)} families, "
        f"seed{'s' if len(config.seeds) > 1 else ''} {', '.join(map(str, config.seeds))}. "
        + (QUICKSTART if isinstance(config.data, QuickstartDomains) else "")
    )
    metrics = [metric for metric in NAMED if found.cell(FULL, IN, metric)]
    panels = [_panel(config, found, metric) for metric in metrics]
    body = section("figure", "In and out of the domain", ABOUT, grid(*panels))
    body += section("numbers", "Numbers", NUMBERS, *(_table(found, families, m) for m in metrics))
    body += section("bleu", "BLEU and cost", BLEU, _costs(found, families))
    text = small_page(
        title="Robustness out of domain", kicker="What each family learns beyond its data",
        under=under, body=body,
    )  # fmt: skip
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


QUICKSTART = (
    "Synthetic data: people, places and phrasings of the invented world's training side, against "
    "those of its test side."
)
NUMBERS = (
    "Differences are from full fine-tuning on the same prompts; p is a sign-flip test's, corrected "
    "by Holm over all families of a measure and domain."
)
BLEU = "BLEU is the whole set's, 0 to 100, its interval over resampled prompts."


def _panel(config: RobustnessConfig, found: Robustness, metric: str) -> str:
    spots = []
    for family in config.families:
        inside, outside = found.cell(family, IN, metric), found.cell(family, OUT, metric)
        if inside is not None and outside is not None:
            spots.append(Spot(family, found.share(family), inside, outside))
    return share_panel(spots, title=NAMED[metric].title, about=NAMED[metric].meaning)


def _table(found: Robustness, families: Sequence[str], metric: str) -> str:
    name = NAMED[metric]
    rows = ""
    for family in families:
        cells = [found.cell(family, domain, metric) for domain in (IN, OUT)]
        changes = [_difference(found, family, domain, metric) for domain in (IN, OUT)]
        shown = "".join(f"<td>{_cell(cell, name)}</td>" for cell in cells)
        rows += (
            f'<tr><th scope="row">{escape(family)}</th><td>{_share(found.share(family))}</td>'
            f"{shown}<td>{changes[0]}</td><td>{changes[1]}</td></tr>"
        )
    heads = (
        "family", "share moved", f"{name.title}, {IN}", OUT,
        f"minus full, {IN}", f"minus full, {OUT}",
    )  # fmt: skip
    return _drawn(heads, rows)


def _difference(found: Robustness, family: str, domain: str, metric: str) -> str:
    name = NAMED[metric]
    for one in found.differences:
        if (one.a, one.quantity.suite, one.quantity.metric) == (family, domain, metric):
            low, high = one.ci95
            return (
                f"{number(one.diff, name, unit=False)} ({interval(low, high, name)}), "
                f"p {p_text(one.p_holm)}"
            )
    return MISSING


def _costs(found: Robustness, families: Sequence[str]) -> str:
    rows = ""
    for family in families:
        mine = [one for one in found.trained if one.family == family]
        minutes = sum(one.seconds for one in mine) / len(mine) / 60
        bleu = "".join(
            f"<td>{value:.1f} ({low:.1f} to {high:.1f})</td>"
            for value, (low, high) in (found.bleu[family][domain] for domain in (IN, OUT))
        )
        rows += (
            f'<tr><th scope="row">{escape(family)}</th><td>{mine[0].trainable:,}</td>'
            f"{bleu}<td>{minutes:.1f}</td></tr>"
        )
    heads = ("family", "parameters moved", f"BLEU, {IN}", f"BLEU, {OUT}", "minutes to train")
    return _drawn(heads, rows)


def _cell(cell: Cell | None, name: Name) -> str:
    return MISSING if cell is None else f"{number(cell.value, name)} ({interval(*cell.ci95, name)})"


def _share(share: float) -> str:
    return MISSING if share == 0 else f"{100 * share:.3g} %"


def _drawn(heads: Sequence[str], rows: str) -> str:
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll">{table}</div>'
