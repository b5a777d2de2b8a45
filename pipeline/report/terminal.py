"""The few numbers that answer the question, as a table for the terminal and for the page."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.evaluation.samples.results import Results
from pipeline.evaluation.samples.tables import Cell, Comparison
from pipeline.report.words import MISSING, cell_text, filter_title, interval, named, number

LINES = (
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
    ("human_labels", None, None),
    ("pretraining", "loss", "held-out"),
    ("responses", "tokens", "all"),
    ("responses", "eos_rate", "all"),
    ("responses", "refusal", "all"),
    ("responses", "repeated_answer", "all"),
)
MOST_COLUMNS = 5
PAGE_ONLY = {"correct", "answered_unanswerable", "toxic_share", "eos_rate", "refusal"}


@dataclass(frozen=True, slots=True)
class Line:
    """One measure: its title, a cell a model, and how the last policy differs from the baseline."""

    metric: str
    title: str
    cells: tuple[Cell | None, ...]
    against_baseline: Comparison | None


def summary_lines(results: Results) -> list[Line]:
    """Return the lines that these results can fill, in the order of the question."""
    models = results.models
    baseline = str(results.about.get("baseline", ""))
    lines = []
    for key in _keys(results):
        is_win_rate = key[1] == "win_rate"  # the baseline's own is one half by definition
        cells = tuple(
            None if is_win_rate and model == baseline else results.cell(model, *key)
            for model in models
        )
        against = results.comparison(models[-1], baseline, *key)
        lines.append(Line(key[1], _title(*key, baseline), cells, against))
    return lines


@dataclass(frozen=True, slots=True)
class Summary:
    """Measures by policy for a terminal, laid out so that no word is cut at its width."""

    models: Sequence[str]
    baseline: str
    lines: Sequence[Line]

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yield the widest of the layouts that the terminal has room for."""
        if len(self.models) > MOST_COLUMNS:
            count = min(MOST_COLUMNS, len(self.lines))
            layouts = [self._by_model(self.lines[:most]) for most in range(count, 0, -1)]
        else:
            layouts = [self._by_measure(compared=True), self._by_measure(compared=False)]
        for heads, rows in layouts:
            table = _table(heads, rows, options.max_width)
            if table is not None:
                yield table
                yield Text(self._caption(len(heads) - 1))
                if len(heads) == 1 + len(self.models) <= MOST_COLUMNS + 1:
                    yield from self._verdicts()
                return
        yield from self._blocks()

    def _by_measure(self, *, compared: bool) -> tuple[list[str], list[list[str]]]:
        rows = [[line.title, *map(_two_lines, line.cells)] for line in self.lines]
        heads = ["", *self.models]
        if compared and self._is_compared:
            heads.append(f"{self.models[-1]} against {self.baseline}")
            for row, line in zip(rows, self.lines, strict=True):
                row.append(verdict_text(line.against_baseline))
        return heads, rows

    def _verdicts(self) -> Iterator[RenderableType]:
        """Yield the last column as lines of text, where there is no room for it."""
        titles: dict[str, list[str]] = {}
        for line in self.lines:
            if line.against_baseline is not None:
                titles.setdefault(verdict_text(line.against_baseline), []).append(line.title)
        for verdict, those in titles.items():
            against = f"{self.models[-1]} against {self.baseline}"
            yield Text(f"{against}, {verdict}: {'; '.join(those)}.")

    def _by_model(self, lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
        rows = [
            [model, *(_two_lines(line.cells[index]) for line in lines)]
            for index, model in enumerate(self.models)
        ]
        return ["", *(line.title for line in lines)], rows

    def _blocks(self) -> Iterator[RenderableType]:
        """Yield a line a number, for a terminal too narrow for any table."""
        for line in self.lines:
            yield Text(line.title, style="bold")
            for model, cell in zip(self.models, line.cells, strict=True):
                yield Text(f"  {model}: {MISSING if cell is None else cell_text(cell)}")
            if line.against_baseline is not None:
                verdict = verdict_text(line.against_baseline)
                yield Text(f"  {self.models[-1]} against {self.baseline}: {verdict}")

    def _caption(self, columns: int) -> str:
        about = "Below each number: its 95 % confidence interval over prompts."
        if len(self.models) > MOST_COLUMNS:
            measures = f"{columns} of {len(self.lines)} measures"
            return f"{measures}. {about} rlhf report shows all measures and every difference."
        named = "A change is named only where it is statistically significant."
        return f"{about} {named}" if self._is_compared else about

    @property
    def _is_compared(self) -> bool:
        return any(line.against_baseline for line in self.lines)


def summary_table(results: Results) -> Summary:
    """Return measures by policy, each above its 95 % interval, for the end of a run."""
    lines = [line for line in summary_lines(results) if line.metric not in PAGE_ONLY]
    return Summary(results.models, str(results.about.get("baseline", "")), lines)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> Table | None:
    """Return a table with no column narrower than its longest word; None where none fits."""
    columns = list(zip(heads, *rows, strict=True))
    widths, spare = [_least_width(column) for column in columns], room - 2 * (len(heads) - 1)
    spare -= sum(widths)
    if spare < 0:
        return None
    for index, column in reversed(list(enumerate(columns))):
        lines = [line for text in column for line in Text.from_markup(text).plain.split("\n")]
        more = min(spare, max(map(len, lines)) - widths[index])
        widths[index], spare = widths[index] + more, spare - more
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for head, width in zip(heads, widths, strict=True):
        table.add_column(head, width=width)
    for row in rows:
        table.add_row(*row)
    return table


def _least_width(column: Sequence[str]) -> int:
    """Return the width of a column's longest word; a number keeps its interval."""
    words: list[str] = []
    for text in column:
        plain = Text.from_markup(text).plain
        words += plain.split("\n") if "[dim]" in text else plain.split()
    return max(map(len, words), default=0)


def reward_model_sentence(held_out: Path) -> str | None:
    """Return how often the reward model orders held-out pairs as annotators did, and their ceiling.

    None where there is no such file, or no pair was held out.
    """
    if not held_out.is_file():
        return None
    held = json.loads(held_out.read_text())
    if held["pair_accuracy"] is None:
        return None
    low, high = held["ci95"]
    sentence = (
        f"Reward model: {held['pair_accuracy']:.1%} of {held['n_pairs']} held-out pairs ordered as "
        f"the annotators did ({low:.1%} to {high:.1%})"
    )
    if held["ceiling"] is None or held["ceiling"]["oracle_accuracy"]["value"] is None:
        return f"{sentence}."  # nobody ranked what another had ranked
    ceiling = held["ceiling"]["oracle_accuracy"]["value"]
    agreed = held["ceiling"]["agreement"]["value"]
    return (
        f"{sentence}. Two annotators agree on {agreed:.1%} of pairs; if they err independently and "
        f"equally often, a model without errors would reach {ceiling:.1%}."
    )


def _two_lines(cell: Cell | None) -> str:
    if cell is None:
        return MISSING
    name = named(cell.quantity.metric)
    return f"{number(cell.value, name)}\n[dim]{interval(*cell.ci95, name)}[/dim]"


def verdict_text(comparison: Comparison | None) -> str:
    """Return the verdict as it may be printed; nothing where there was no comparison."""
    if comparison is None:
        return ""
    won = {"rise": "wins more often", "reduction": "loses more often"}
    verdict = comparison.verdict
    return won.get(verdict, verdict) if comparison.quantity.metric == "win_rate" else verdict


def _keys(results: Results) -> list[tuple[str, str, str]]:
    """Return the measures in the order of LINES, or all where LINES has none of them."""
    every = list(dict.fromkeys(cell.quantity.key for cell in results.cells))
    known = [
        key
        for wanted in LINES
        for key in every
        if all(part is None or part == own for part, own in zip(wanted, key, strict=True))
    ]
    return known or every


def _title(suite: str, metric: str, filter: str, baseline: str) -> str:
    title = named(metric).title
    if metric == "win_rate":
        by = " by reward model (not independent)" if "reward" in suite else ""
        return f"win rate against {baseline}{by}"
    if filter in {"all", "held-out"}:
        return title
    return f"{title}, {filter_title(filter)}"
