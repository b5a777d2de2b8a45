"""The page: made from files alone, whole without a network, honest about what it stands on."""

import json
import re
from pathlib import Path

import pytest

from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.samples.results import write_results
from pipeline.report.build import report_page, write_report
from pipeline.report.inputs import read_inputs
from pipeline.report.words import interval, named, number
from reward_models.atomic_files import write_jsonl
from tests.pipeline.made_up_run import MODELS, made_up_results, manifest, outline


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


def test_rows_that_no_policy_wrote_are_no_outputs(run: Path):
    rows = [Completion(id="t", model="base", prompt="", completion="SECRET", suite="pretraining")]
    write_jsonl(run / "evaluate/samples.jsonl", (row.to_json() for row in rows))
    assert "SECRET" not in report_page(read_inputs(run))


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
    for text in ("annotators learnt from", "annotators never seen", "dealt into 3 groups"):
        assert text in page, text


def test_prompts_held_out_in_turn_stand_beside_those_held_out_for_good(run: Path) -> None:
    rate = {"value": 0.593, "ci95": [0.557, 0.625], "n_prompts": 240, "n_pairs": 1313}
    longer = {**rate, "value": 0.571}
    drawn = {"pair_accuracy": rate, "longer_wins": longer, "folds": 10, "seed": 0}
    (run / "reward/prompt_folds.json").write_text(json.dumps(drawn))
    page = report_page(read_inputs(run))
    for text in ("prompts in turn", "59.3", "dealt into 10 parts", "57.1% by the longer output"):
        assert text in page, text
