"""The alignment tax: a policy under lm-eval, on task files of our own, paired by document."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.config.evaluation import EvaluationConfig, TaxConfig
from pipeline.evaluation.generate import likelihoods
from pipeline.evaluation.samples.records import Completion, ScoredRows
from pipeline.evaluation.samples.tables import Resampling, Table, cells
from pipeline.evaluation.suites.alignment_tax import tax_notes, tax_samples, tax_tables
from pipeline.evaluation.suites.suite import Inputs
from pipeline.runs.manifest import model_source
from stages.models import load_policy, load_tokenizer
from stages.progress import Step

Benchmarked = tuple[list[Completion], list[Step]]
BASE = model_source("quickstart")
QUESTIONS = [f"User: Is cup {n} red?\nAssistant:" for n in range(6)]
CHOICES = ["yes", "no, it is"]
DOCUMENTS = [
    {"question": question, "choices": CHOICES, "answer": n % 2}
    for n, question in enumerate(QUESTIONS)
]
CHOICE = """\
task: cups
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
GENERATION = """\
task: cups_said
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: generate_until
generation_kwargs: {{until: ["."], max_gen_toks: 4}}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
metric_list: [{{metric: bleu}}, {{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def benchmarked(tmp_path_factory: pytest.TempPathFactory) -> Benchmarked:
    folder = tmp_path_factory.mktemp("tasks")
    documents = folder / "cups.jsonl"
    documents.write_text("".join(json.dumps(one) + "\n" for one in DOCUMENTS))
    for name, text in (("cups", CHOICE), ("cups_said", GENERATION)):
        (folder / f"{name}.yaml").write_text(text.format(path=documents))
    steps: list[Step] = []
    tax = TaxConfig(tasks=["cups", "cups_said"], folder=str(folder))
    policies: dict[str, str | Path] = {"base": BASE, "b": BASE}
    inputs = Inputs(EvaluationConfig(tax=tax), policies, report=steps.append)
    return tax_samples(inputs), steps


def tables(rows: list[Completion]) -> list[Table]:
    return tax_tables(ScoredRows.of(rows), ["base", "b"], EvaluationConfig())


def test_accuracy_is_that_of_our_own_log_probabilities(
    benchmarked: Benchmarked,
):
    texts = [(question, f" {choice}") for question in QUESTIONS for choice in CHOICES]
    with torch.no_grad():
        continuations = likelihoods(load_policy(BASE), load_tokenizer(BASE), texts)
    right = [
        float((continuations[2 * n + 1].logprob > continuations[2 * n].logprob) == bool(n % 2))
        for n in range(len(QUESTIONS))
    ]
    (accuracy,) = [t for t in tables(benchmarked[0]) if t.quantity.metric == "acc"]
    assert accuracy.value_NM.tolist() == [[value, value] for value in right]
    assert accuracy.quantity.filter == "cups"
    assert accuracy.quantity.better == "higher"


def test_equal_policies_pay_no_tax_and_every_cell_has_an_interval(
    benchmarked: Benchmarked,
):
    for table in tables(benchmarked[0]):
        first, second = cells(table, Resampling(100, 100))
        assert first.value == second.value
        assert first.n == 6
        assert first.ci95[0] <= first.value <= first.ci95[1]


def test_a_corpus_metric_is_told_without_an_interval(
    benchmarked: Benchmarked,
):
    metrics = {table.quantity.metric for table in tables(benchmarked[0])}
    assert metrics == {"acc", "exact_match"}
    assert tax_notes(ScoredRows.of(benchmarked[0]), EvaluationConfig())[0].startswith(
        "cups_said, bleu (whole corpus, no interval): base"
    )


def test_progress_ends_with_the_whole(benchmarked: Benchmarked):
    done = [step.done for step in benchmarked[1]]
    assert done == sorted(done) or max(done) == benchmarked[1][-1].total
    assert benchmarked[1][-1].done == benchmarked[1][-1].total


def run(task: str, folder: Path) -> None:
    tax = TaxConfig(tasks=[task], folder=str(folder))
    tax_samples(Inputs(EvaluationConfig(tax=tax), {"a": "nowhere"}))


@pytest.mark.slow  # lm-eval lists its thousands of tasks first
def test_an_unknown_task_is_one_line_before_anything_loads(tmp_path: Path):
    with pytest.raises(ValueError, match="lm-eval has no task 'no_such_task'"):
        run("no_such_task", tmp_path)


def test_a_missing_folder_of_tasks_is_one_line(tmp_path: Path):
    with pytest.raises(ValueError, match="no such folder of lm-eval tasks"):
        run("cups", tmp_path / "absent")
