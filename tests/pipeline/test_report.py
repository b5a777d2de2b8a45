"""The page: made from files alone, whole without a network, honest about what it stands on."""

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser
from rich.console import Console

from pipeline.evaluation.results import Results, results_of
from pipeline.evaluation.results_file import write_results
from pipeline.evaluation.samples import Completion
from pipeline.evaluation.tables import Cell, Quantity, Resampling, Table
from pipeline.lineage import Manifest
from pipeline.report.bars import grouped_bars
from pipeline.report.forest import interval_panel, scale_of
from pipeline.report.inputs import read_inputs
from pipeline.report.lines import Curve, line_panel, thinned
from pipeline.report.page import report_page, write_report
from pipeline.report.summary import reward_model_sentence, summary_lines, summary_table
from pipeline.report.tax import tax_table
from pipeline.report.words import interval, named, number, p_text
from reward_models.records import write_jsonl

MODELS = ("base", "sft", "ppo", "ppo-ptx")


def table(quantity: Quantity, centre: float, spread: float, *, step: float = 0.0) -> Table:
    noise_NM = np.random.default_rng(0).normal(0, spread, (60, len(MODELS)))
    value_NM = centre + step * np.arange(len(MODELS)) + noise_NM
    return Table(quantity, MODELS, value_NM, np.ones(60), (60,) * 4, (0,) * 4)


def rates(quantity: Quantity, *shares: float) -> Table:
    place_N1 = (np.arange(60)[:, None] + 0.5) / 60
    value_NM = (place_N1 < np.array(shares)).astype(float)
    return Table(quantity, MODELS, value_NM, np.ones(60), (60,) * 4, (0,) * 4)


def made_up_results() -> Results:
    gold = "gold judge"
    tables = [
        rates(Quantity("preference", "win_rate", "all", gold, "higher"), 0.2, 0.5, 0.6, 0.7),
        table(Quantity("use_cases", "gold", "all", gold, "higher"), 0.3, 0.2, step=0.1),
        table(Quantity("use_cases", "gold", "closed_qa", gold, "higher"), -0.2, 0.2, step=0.2),
        rates(Quantity("hallucination", "hallucination", "all", gold, "lower"), 0.5, 0.2, 0.2, 0.1),
        *(
            table(Quantity("toxicity", "toxicity", kind, "scorer", "lower"), 0.4, 0.1, step=-0.05)
            for kind in ("none", "respectful", "biased")
        ),
        table(Quantity("pretraining", "loss", "held-out", "itself", "lower", "text"), 2.0, 0.1),
        rates(Quantity("responses", "repeated_answer"), 0.4, 0.0, 0.1, 0.1),
    ]
    pairs = [
        ("sft", "base"),
        ("ppo", "base"),
        ("ppo", "sft"),
        ("ppo-ptx", "base"),
        ("ppo-ptx", "sft"),
    ]
    return results_of(
        tables,
        pairs,
        Resampling(300, 300),
        scorers={gold: {"version": "1", "sha256": "ab" * 32, "threshold": None}},
        notes=["prompts are synthetic"],
        about={"baseline": "sft", "shown_samples": 4},
    )


def made_up_samples() -> list[Completion]:
    return [
        Completion(
            id=f"{category}-{i}",
            model=model,
            prompt=f"Prompt {i} about <b>{category}</b> & more?",
            context="A passage." if category == "closed_qa" else None,
            completion="You idiot <script>alert(1)</script>" if model == "base" else f"Answer {i}",
            suite="test",
            category=category,
            finish_reason="stop",
            scores={"alt-profanity-check": {"toxicity": 0.9 if model == "base" else 0.05}},
        )
        for model in MODELS
        for category in ("closed_qa", "chat")
        for i in range(3)
    ]


def manifest(stage: str, labels: list[str]) -> Manifest:
    return Manifest(
        stage=stage, fingerprint="f", settings={}, seed=7, inputs={}, outputs={}, labels=labels,
        code_version="0.1.0", libraries={}, started="2026-01-01", wall_s=12.0, cpu_s=12.0,
        peak_rss_bytes=500_000_000,
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "my-run"
    for stage in ("sft", "reward", "ppo", "ppo-ptx", "evaluate"):
        (folder / stage).mkdir(parents=True)
        labels = [] if stage == "sft" else ["simulated"]
        manifest(stage, labels).write(folder / stage / "manifest.json")
    write_results(made_up_results(), folder / "evaluate/results.json")
    write_jsonl(folder / "evaluate/samples.jsonl", (row.to_json() for row in made_up_samples()))
    for stage in ("ppo", "ppo-ptx"):
        steps = [
            {
                "step": i,
                "total": 9,
                "ppo/score": 0.1 * i,
                "ppo/kl_nats": 0.2 * i,
                "ppo/eos_rate": None,
            }
            for i in range(1, 10)
        ]
        write_jsonl(folder / stage / "metrics.jsonl", steps)
    held_out = {"pair_accuracy": 0.74, "ci95": [0.7, 0.78], "n_prompts": 50, "ceiling": None}
    (folder / "reward/held_out.json").write_text(json.dumps(held_out))
    return folder


class Outline(HTMLParser):
    """Collects what a page loads, its ids and its texts, and checks that tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.loads += [str(found[name]) for name in ("src", "href") if name in found]
        self.ids += [str(found["id"])] if "id" in found else []
        if tag not in {"meta", "link", "line", "circle", "path", "br", "rect", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def outline(page: str) -> Outline:
    parsed = Outline()
    parsed.feed(page)
    assert parsed.open == []
    return parsed


def test_the_page_loads_nothing_from_anywhere(run: Path):
    page = write_report(run, run / "report/report.html").read_text(encoding="utf-8")
    parsed = outline(page)
    assert all(link.startswith(("#", "data:")) for link in parsed.loads)
    assert "url(" not in page
    assert "@import" not in page
    assert "http" not in page


def test_every_link_leads_somewhere_and_no_id_is_twice(run: Path):
    parsed = outline(report_page(read_inputs(run)))
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert {link[1:] for link in parsed.loads if link.startswith("#")} <= set(parsed.ids)


def test_simulated_labels_and_synthetic_data_are_said_at_the_top(run: Path):
    page = report_page(read_inputs(run))
    top = page[: page.index("<nav")]
    assert "Simulated labels." in top
    assert "Synthetic data." in top


def test_labels_by_people_are_not_called_simulated(run: Path):
    for stage in ("reward", "ppo", "ppo-ptx", "evaluate"):
        manifest(stage, ["human"]).write(run / stage / "manifest.json")
    assert "Simulated labels" not in report_page(read_inputs(run))


def test_one_simulated_label_among_human_ones_is_said(run: Path):
    manifest("ppo", ["human", "simulated"]).write(run / "ppo/manifest.json")
    assert "among labels by people" in report_page(read_inputs(run))


def test_model_text_is_never_markup(run: Path):
    page = report_page(read_inputs(run))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "about <b>chat" not in page


def test_toxic_outputs_are_folded_and_others_are_not(run: Path):
    page = report_page(read_inputs(run))
    answers = re.findall(r'<div class="answer">.*?</div>', page, re.DOTALL)
    assert len(answers) == 4 * len(MODELS)
    for answer in answers:
        assert ("toxic, folded" in answer) == ("idiot" in answer)


def test_every_number_stands_on_the_page_with_its_interval_and_n(run: Path):
    inputs = read_inputs(run)
    text = outline(report_page(inputs)).text
    for cell in inputs.results.cells:
        name = named(cell.quantity.metric)
        assert number(cell.value, name) in text
        assert interval(*cell.ci95, name) in text
    assert "n = 60 prompts" in text
    assert "n = 60 texts" in text


def test_a_run_without_samples_metrics_or_manifests_still_has_a_page(tmp_path: Path):
    write_results(made_up_results(), tmp_path / "results.json")
    parsed = outline(report_page(read_inputs(tmp_path)))
    assert "outputs" not in parsed.ids
    assert "curves" not in parsed.ids
    assert "summary" in parsed.ids


def test_no_results_is_one_line(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no results\.json; expected a run whose evaluation"):
        write_report(tmp_path, tmp_path / "report.html")
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match=r"results\.json: no results of an evaluation"):
        write_report(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


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


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [
        (0.1234, "hallucination", "12.3\u202f%"),
        (-0.5, "gold", "\u22120.50"),
        (-0.0001, "gold", "0.00"),
        (float("nan"), "gold", "n/a"),
    ],
)
def test_numbers_are_printed_plainly(value: float, metric: str, text: str):
    assert number(value, named(metric)) == text


def test_p_values_are_printed_as_papers_do():
    assert [p_text(p) for p in (0.0004, 0.034, 1.0)] == ["< .001", ".034", "1"]


def cell(value: float, low: float, high: float) -> Cell:
    quantity = Quantity("toxicity", "toxicity", "none", "s")
    return Cell(quantity, "m", value, 0.1, (low, high), 10, 10, 0, "bootstrap")


@pytest.mark.parametrize("values", [(0.2, 0.1, 0.3), (-3.0, -4.0, 9.0), (1e-6, 0, 2e-6), (5, 5, 5)])
def test_a_scale_holds_its_intervals_between_round_ticks(values: tuple[float, float, float]):
    scale = scale_of([cell(*values)])
    assert scale.low <= values[1]
    assert values[2] <= scale.high
    assert 2 <= len(scale.ticks) <= 7
    steps = np.diff(scale.ticks)
    assert steps == pytest.approx(np.full(len(steps), steps[0]))


def test_a_panel_says_its_numbers_to_those_who_cannot_see_it():
    panel = interval_panel([cell(0.25, 0.2, 0.3)], title="Toxicity", focus="m")
    assert 'aria-label="Toxicity: m 0.250 (0.200\u20130.300)"' in panel


def test_failures_are_shown_in_the_panel():
    panel = interval_panel([replace(cell(0.25, 0.2, 0.3), n_failed=3)], title="T", focus="m")
    assert "3 failed" in panel


def test_a_curve_without_numbers_draws_nothing():
    assert line_panel([Curve("a", [(1.0, float("nan"))])], title="t", x_title="x") == ""
    assert line_panel([], title="t", x_title="x") == ""


def test_a_constant_curve_has_a_scale():
    assert "<path" in line_panel([Curve("a", [(1, 2.0), (2, 2.0)])], title="t", x_title="x")


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


def test_bars_stand_on_zero_and_reach_their_values():
    groups = {
        kind: [
            Cell(Quantity("toxicity", "toxicity", kind), model, value, 0, (value / 2, value), 9, 9,
                 0, "bootstrap")
            for model in ("a", "b")
        ]
        for kind, value in (("none", 0.2), ("biased", 0.4))
    }  # fmt: skip
    drawn = grouped_bars(groups, title="toxicity", focus="b")
    heights = [float(found) for found in re.findall(r'height="([\d.]+)%"', drawn)]
    assert heights == pytest.approx([50.0, 50.0, 100.0, 100.0])
    assert drawn.count('class="bar focus"') == 2
    assert "b, biased: 0.400 (0.200" in drawn


def test_bars_are_not_drawn_below_zero_or_for_one_condition():
    cells = [Cell(Quantity("s", "gold"), m, -1.0, 0, (-2, 0), 9, 9, 0, "bootstrap") for m in "ab"]
    assert grouped_bars({"x": cells, "y": cells}, title="t", focus="") == ""
    assert grouped_bars({"x": cells}, title="t", focus="") == ""


def test_the_tax_table_shows_changes_against_the_first_policy(run: Path):
    page = tax_table(read_inputs(run))
    assert page.count("<tr>") == 2
    assert page.count("<em") == 3  # sft, ppo and ppo-ptx, each against base


def test_rows_that_no_policy_wrote_are_no_outputs(run: Path):
    rows = [Completion(id="t", model="base", prompt="", completion="SECRET", suite="pretraining")]
    write_jsonl(run / "evaluate/samples.jsonl", (row.to_json() for row in rows))
    assert "SECRET" not in report_page(read_inputs(run))


def test_thinning_keeps_both_ends():
    points = [(float(i), float(i)) for i in range(1001)]
    kept = thinned(points, 100)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert len(kept) <= 102


OVERFLOWING = """() => [...document.querySelectorAll('body *')].filter(e => {
    const box = e.getBoundingClientRect();
    return box.width > 0 && box.right > innerWidth + 1 && !e.closest('.scroll, nav');
}).map(e => e.outerHTML.slice(0, 80))"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_leaves_the_screen_or_the_page(
    run: Path, browser: Browser, width: int, scheme: str
):
    path = write_report(run, run / "report.html")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    page, requests, errors = context.new_page(), list[str](), list[str]()
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    assert page.evaluate(OVERFLOWING) == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert errors == []
    context.close()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(run: Path, browser: Browser, scheme: str):
    context = browser.new_context(color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(write_report(run, run / "report.html").as_uri())
    source = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    page.evaluate(source)
    found = page.evaluate("axe.run(document)")["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []
    context.close()


@pytest.mark.browser
def test_filters_by_mark_and_by_words_need_no_server(run: Path, browser: Browser):
    page = browser.new_page()
    page.goto(write_report(run, run / "report.html").as_uri())
    cards, everything = page.locator("#cards .card:visible"), page.locator("#cards .card").count()
    assert page.locator("#mark option").all_inner_texts() == ["anything", "toxic"]
    page.fill("#words", "ANSWER 1")
    assert cards.count() == 2
    assert page.locator("#left").inner_text() == f"2 of {everything} prompts"
    page.fill("#words", "")
    page.select_option("#mark", "toxic")
    assert cards.count() == everything  # the base is toxic everywhere
    page.close()


@pytest.mark.browser
def test_the_filter_shows_one_kind_and_all_again(run: Path, browser: Browser):
    page = browser.new_page()
    page.goto(write_report(run, run / "report.html").as_uri())
    cards = page.locator("#cards .card:visible")
    everything = cards.count()
    page.select_option("#kind", "test/chat")
    assert 0 < cards.count() < everything
    page.select_option("#kind", "")
    assert cards.count() == everything
    page.close()


def test_a_reward_model_of_one_annotator_has_a_sentence_without_a_ceiling(tmp_path: Path) -> None:
    held = {"pair_accuracy": 0.7, "ci95": [0.6, 0.8], "n_pairs": 50, "ceiling": None}
    file = tmp_path / "held_out.json"
    assert reward_model_sentence(file) is None
    file.write_text(json.dumps(held))
    said = reward_model_sentence(file)
    assert said is not None
    assert said.endswith(
        "70.0% of 50 held-out pairs ordered as the annotators did (60.0% to 80.0%)."
    )


def test_annotators_that_were_never_seen_are_shown_beside_those_learnt_from(run: Path) -> None:
    write_report(run, run / "plain.html")
    assert "annotators never seen" not in (run / "plain.html").read_text()
    rates = {"in_group": 0.724, "held_out_group": 0.696}
    folds: dict[str, object] = {
        name: {"value": value, "ci95": [value - 0.01, value + 0.01], "n_prompts": 40}
        for name, value in rates.items()
    }
    folds["groups"] = [["a"], ["b"], ["c"]]
    (run / "reward/annotator_folds.json").write_text(json.dumps(folds))
    write_report(run, run / "report.html")
    page = (run / "report.html").read_text()
    for said in ("annotators learnt from", "annotators never seen", "dealt into 3 groups"):
        assert said in page, said
