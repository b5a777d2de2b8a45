"""The tables beside and before the page: summary, differences, the tax, files of all of them."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.evaluation.samples.results import results_of
from pipeline.evaluation.samples.tables import Cell, Quantity, Resampling
from pipeline.report.build import report_page, write_report
from pipeline.report.inputs import read_inputs
from pipeline.report.terminal import (
    Line,
    Summary,
    reward_model_sentence,
    summary_lines,
    summary_table,
)
from tests.pipeline.made_up_run import MODELS, made_up_results, rates


def printed(table: Summary, width: int) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def cells_of(metric: str, models: Sequence[str]) -> Iterator[Cell]:
    for model in models:
        quantity = Quantity("suite", metric, "all")
        yield Cell(quantity, model, -0.1234, 0.1, (-0.2, 0.4), 60, 60, 0, "bootstrap")


def test_the_summary_leaves_out_the_baselines_own_win_rate():
    lines = summary_lines(made_up_results())
    won = next(line for line in lines if line.metric == "win_rate")
    assert won.cells[MODELS.index("sft")] is None
    assert won.cells[MODELS.index("ppo")] is not None


def test_the_terminal_table_names_changes_only_where_they_are_shown():
    results = made_up_results()
    console = Console(width=140)
    with console.capture() as captured:
        console.print(summary_table(results))
    text = captured.get()
    assert "win rate against sft" in text
    assert "wins more often" in text
    line = next(line for line in text.splitlines() if line.startswith("hallucination"))
    expected = results.comparison("ppo-ptx", "sft", "hallucination", "hallucination")
    assert expected is not None
    assert expected.verdict in line


@pytest.mark.parametrize("width", [20, 40, 80, 100, 120, 200])
@pytest.mark.parametrize(
    "models",
    [
        ("base", "sft", "ppo", "ppo-ptx"),
        ("base", "few-shot-prompted", "instruction-tuned", "sft", "ppo"),
        ("base", "prompted", "flan", "best-of-16", "sft", "ppo", "ppo-ptx", "ppo-2", "ppo-ptx-2"),
    ],
)
def test_at_no_width_is_a_word_or_a_number_of_the_summary_cut(width: int, models: tuple[str, ...]):
    metrics, compared = ("toxicity", "gold", "hallucination"), made_up_results().comparisons[0]
    lines = [
        Line(metric, "a measure of a rather long name", tuple(cells_of(metric, models)), compared)
        for metric in metrics
    ]
    table = Summary(models, models[0], lines)
    text = printed(table, width)
    lists = (*table._blocks(), *table._verdicts())
    whole = printed(table, 1000) + "\n".join(str(line) for line in lists)
    assert max(map(len, text.splitlines())) <= width
    assert set(text.split()) <= set(whole.split()) | {"1", "2", "3"}  # of so many measures


def test_every_table_stands_beside_the_page_as_markdown_and_csv(run: Path):
    write_report(run, run / "out/report.html")
    tables = run / "out/tables"
    with (tables / "numbers-toxicity.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    results = read_inputs(run).results
    assert len(rows) == sum(cell.quantity.suite == "toxicity" for cell in results.cells)
    for row in rows:
        cell = results.cell(row["model"], "toxicity", row["measure"], row["part"])
        assert cell is not None
        assert (float(row["value"]), float(row["low"])) == (cell.value, cell.ci95[0])
    differences = (tables / "differences-toxicity.md").read_text()
    assert differences.count("\n") == 2 + 5 * 3
    assert (
        (tables / "summary.md").read_text().startswith("| measure | base | sft | ppo | ppo-ptx |")
    )
    assert {path.suffix for path in tables.iterdir()} == {".md", ".csv"}


def test_the_tax_table_shows_changes_against_the_first_policy(run: Path):
    page = report_page(read_inputs(run))
    table = page[page.index('aria-label="Alignment tax"') :].partition("</table>")[0]
    assert table.count("<tr>") == 2
    assert table.count("<em") == 3  # sft, ppo and ppo-ptx, each against base


def test_a_reward_model_of_one_annotator_has_a_sentence_without_a_ceiling(tmp_path: Path) -> None:
    held = {"pair_accuracy": 0.7, "ci95": [0.6, 0.8], "n_pairs": 50, "ceiling": None}
    file = tmp_path / "held_out.json"
    assert reward_model_sentence(file) is None
    file.write_text(json.dumps(held))
    output = reward_model_sentence(file)
    assert output is not None
    assert output.endswith(
        "70.0% of 50 held-out pairs ordered as the annotators did (60.0% to 80.0%)."
    )


def test_a_suite_that_the_summary_does_not_know_is_summed_up_all_the_same():
    table = rates(Quantity("own", "full_stop"), 0.2, 0.5, 0.6, 0.7)
    results = results_of(
        [table], [], Resampling(100, 100), scorers={}, notes=[], about={"baseline": "sft"}
    )
    assert [line.title for line in summary_lines(results)] == ["full stop"]
