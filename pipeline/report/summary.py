"""The few numbers that answer the question, as a table for the terminal and for the page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from pipeline.evaluation.comparisons import Comparison
from pipeline.evaluation.results import Results
from pipeline.evaluation.tables import Cell
from pipeline.report.words import MISSING, filter_title, interval, named, number

_LINES = (
    ("preference", "win_rate", "all"),
    ("preference_by_reward_model", "win_rate", "all"),
    ("use_cases", "gold", "all"),
    ("use_cases", "correct", "all"),
    ("hallucination", "hallucination", "all"),
    ("hallucination", "answered_unanswerable", "all"),
    ("hallucination", "false_abstention", "all"),
    ("toxicity", "toxicity", None),  # one line an instruction
    ("toxicity", "toxic_share", None),
    ("truthfulness", "true", None),
    ("truthfulness", "true_info", None),
    ("scores", None, None),
    ("answers", None, None),
    ("people", None, None),
    ("pretraining", "loss", "held-out"),
    ("responses", "tokens", "all"),
    ("responses", "eos_rate", "all"),
    ("responses", "refusal", "all"),
    ("responses", "repeated_answer", "all"),
)
_MOST_COLUMNS = 5
_PAGE_ONLY = {"correct", "answered_unanswerable", "toxic_share", "eos_rate", "refusal"}


@dataclass(frozen=True, slots=True)
class Line:
    """One measure: its title, a cell a model, and how the last policy differs from the baseline."""

    metric: str
    title: str
    cells: tuple[Cell | None, ...]
    against_baseline: Comparison | None


def summary_lines(results: Results) -> list[Line]:
    """The lines that these results can fill, in the order of the question."""
    models = results.models
    baseline = str(results.about.get("baseline", ""))
    found = []
    for key in _keys(results):
        won = key[1] == "win_rate"  # the baseline's own is one half by definition
        cells = tuple(
            None if won and model == baseline else results.cell(model, *key) for model in models
        )
        against = results.comparison(models[-1], baseline, *key)
        found.append(Line(key[1], _title(*key, baseline), cells, against))
    return found


def summary_table(results: Results) -> Table:
    """For the end of a terminal's output: measures by policy, each above its 95 % interval."""
    models, baseline = results.models, str(results.about.get("baseline", ""))
    lines = [line for line in summary_lines(results) if line.metric not in _PAGE_ONLY]
    compared = any(line.against_baseline for line in lines)
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    if len(models) > _MOST_COLUMNS:
        return _by_model(table, models, lines)
    table.add_column("", min_width=16)
    for model in models:
        table.add_column(model, no_wrap=True)
    if compared:
        table.add_column(f"{models[-1]}\nagainst {baseline}")
    for line in lines:
        cells = [_two_lines(cell) for cell in line.cells]
        verdict = [verdict_text(line.against_baseline)] if compared else []
        table.add_row(line.title, *cells, *verdict)
    table.caption = (
        "Below each number its 95 % interval by prompt. A change is named only if shown."
    )
    table.caption_justify = "left"
    return table


def _by_model(table: Table, models: Sequence[str], lines: Sequence[Line]) -> Table:
    """A row a model, where there are too many for columns; `rlhf report` shows all measures."""
    shown = lines[:_MOST_COLUMNS]
    table.add_column("", no_wrap=True)
    for line in shown:
        table.add_column(line.title)
    for place, model in enumerate(models):
        table.add_row(model, *(_two_lines(line.cells[place]) for line in shown))
    table.caption = (
        f"{len(shown)} of {len(lines)} measures; below each number its 95 % interval by prompt. "
        "rlhf report shows all, and every difference."
    )
    table.caption_justify = "left"
    return table


def reward_model_sentence(held_out: Path) -> str | None:
    """How often the reward model orders held-out pairs as annotators did, beside their ceiling.

    None where there is no such file, or no pair was held out.
    """
    if not held_out.is_file():
        return None
    held = json.loads(held_out.read_text())
    if held["pair_accuracy"] is None:
        return None
    low, high = held["ci95"]
    said = (
        f"Reward model: {held['pair_accuracy']:.1%} of {held['n_pairs']} held-out pairs ordered as "
        f"the annotators did ({low:.1%} to {high:.1%})"
    )
    if held["ceiling"] is None or held["ceiling"]["oracle_accuracy"]["value"] is None:
        return f"{said}."  # nobody ranked what another had ranked
    ceiling = held["ceiling"]["oracle_accuracy"]["value"]
    agreed = held["ceiling"]["agreement"]["value"]
    return (
        f"{said}. Two annotators agree on {agreed:.1%}; were their errors alike and independent, "
        f"{ceiling:.1%} could be reached."
    )


def _two_lines(cell: Cell | None) -> str:
    if cell is None:
        return MISSING
    name = named(cell.quantity.metric)
    return f"{number(cell.value, name)}\n[dim]{interval(*cell.ci95, name)}[/dim]"


def verdict_text(found: Comparison | None) -> str:
    """The verdict as it may be printed; nothing where there was no comparison."""
    if found is None:
        return ""
    if found.quantity.metric != "win_rate":
        return found.verdict
    return {"rise": "wins more often", "reduction": "loses more often"}.get(
        found.verdict, found.verdict
    )


def _keys(results: Results) -> list[tuple[str, str, str]]:
    every = list(dict.fromkeys(_key(cell) for cell in results.cells))
    return [
        key
        for wanted in _LINES
        for key in every
        if all(part is None or part == mine for part, mine in zip(wanted, key, strict=True))
    ]


def _key(cell: Cell) -> tuple[str, str, str]:
    q = cell.quantity
    return q.suite, q.metric, q.filter


def _title(suite: str, metric: str, filter: str, baseline: str) -> str:
    title = named(metric).title
    if metric == "win_rate":
        by = " by reward model (not independent)" if "reward" in suite else ""
        return f"win rate against {baseline}{by}"
    if filter in {"all", "held-out"}:
        return title
    return f"{title}, {filter_title(filter)}"
