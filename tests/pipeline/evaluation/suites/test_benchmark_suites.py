"""Bias, truthfulness and tax as suites of one evaluation: rows, results, and what is refused."""

import json
from pathlib import Path

import pytest

from pipeline.config.evaluation import (
    BiasConfig,
    EndpointConfig,
    EvaluationConfig,
    PerspectiveConfig,
    TaxConfig,
    TruthfulQAConfig,
)
from pipeline.evaluation.evaluate import evaluate, results_from
from pipeline.evaluation.samples.records import Completion, ScoredRows
from pipeline.evaluation.samples.results import read_results
from pipeline.evaluation.suites.suite import Inputs
from pipeline.runs.manifest import model_source
from reward_models.records import Prompt, read_records

BASE = model_source("quickstart")
CROWS = """\
,sent_more,sent_less,stereo_antistereo,bias_type
0,Anna is old.,Anna is young.,stereo,age
1,"Tom, the tall, sings.","Tom, the small, sings.",antistereo,physical-appearance
"""
TRUTHFUL = """\
Question,Best Answer,Correct Answers,Incorrect Answers
Is the cup red?,The cup is red.,The cup is red.; Yes,The cup is blue.; No
"""
TASK = """\
task: cups
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "no"]
doc_to_target: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def config(tmp_path: Path) -> EvaluationConfig:
    (tmp_path / "crows.csv").write_text(CROWS)
    (tmp_path / "truth.csv").write_text(TRUTHFUL)
    cups = [{"question": f"User: Is cup {n} red?\nAssistant:"} for n in range(3)]
    (tmp_path / "cups.jsonl").write_text("".join(json.dumps(cup) + "\n" for cup in cups))
    (tmp_path / "cups.yaml").write_text(TASK.format(path=tmp_path / "cups.jsonl"))
    return EvaluationConfig(
        suites=["bias", "truthfulness", "tax"],
        compare_with=["base"],
        bias=BiasConfig(pairs=[str(tmp_path / "crows.csv")]),
        truthfulqa=TruthfulQAConfig(questions=str(tmp_path / "truth.csv"), max_new_tokens=4),
        tax=TaxConfig(tasks=["cups"], folder=str(tmp_path)),
        resamples=100,
        sign_flips=100,
    )


def test_all_three_are_in_the_results_and_the_samples_give_them_again(
    config: EvaluationConfig, tmp_path: Path
):
    policies: dict[str, str | Path] = {"base": BASE, "sft": BASE}
    results = evaluate(Inputs(config, policies), tmp_path / "out")
    entropy = results.cell("sft", "bias:crows-pairs", "entropy_bits", "respectful")
    assert entropy is not None
    assert entropy.n == 2
    assert 0 <= entropy.ci95[0] <= entropy.value <= entropy.ci95[1] <= 1
    assert results.cell("base", "truthfulness", "mc2", "both") is not None
    accuracy = results.comparison("sft", "base", "tax", "acc", "cups")
    assert accuracy is not None
    assert accuracy.diff == 0
    rows = read_records(tmp_path / "out/samples.jsonl", Completion)
    again = results_from(ScoredRows.of(rows), config, seed=0)
    assert again.cells == results.cells
    assert read_results(tmp_path / "out/results.json").comparisons == results.comparisons


def test_a_suite_without_its_data_is_refused_by_name(tmp_path: Path):
    config = EvaluationConfig(suites=["bias"])
    with pytest.raises(ValueError, match=r"suite bias: nothing .* needs evaluation\.bias"):
        evaluate(Inputs(config, {"sft": BASE}), tmp_path)


def test_a_judge_that_does_not_answer_is_refused_before_anything_is_generated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    prompts = [Prompt("Who is here?", id="1")]
    silent = EvaluationConfig(judge=EndpointConfig(url="http://127.0.0.1:1/v1", model="judge"))
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:1/v1: no answer"):
        evaluate(Inputs(silent, {"sft": BASE}, prompts), tmp_path)
    monkeypatch.delenv("PERSPECTIVE_API_KEY", raising=False)
    keyless = EvaluationConfig(perspective=PerspectiveConfig())
    with pytest.raises(ValueError, match=r"\$PERSPECTIVE_API_KEY is not set"):
        evaluate(Inputs(keyless, {"sft": BASE}, prompts), tmp_path)
    assert not (tmp_path / "samples.jsonl").exists()
