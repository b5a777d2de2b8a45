"""External files through `score_file`: the public samples, and others with traps."""

import csv
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.evaluation import EvaluationConfig
from pipeline.evaluation.external.sample_files import open_samples
from pipeline.evaluation.external.score import score_file
from pipeline.evaluation.samples.records import Completion, Scores
from pipeline.evaluation.samples.results import Results, read_results
from pipeline.evaluation.scorers.toxicity import ProfanityScorer
from tests.pipeline.made_up_run import there

QUICK = EvaluationConfig(resamples=400, sign_flips=400)
COLUMNS = {"model": "model_type", "prompt": "context", "completion": "sample"}
HEADER = ["", "model_type", "prompt_type", "context", "sample", "toxicity"]


def write_csv(path: Path, rows: Sequence[Sequence[object]], header: Sequence[str] = HEADER) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def made_up(models: Sequence[str] = ("a", "b"), prompts: int = 40) -> list[list[object]]:
    draw = random.Random(1)
    rows = [
        [model, kind, f"prompt {i}", f"said {model} {i}", round(draw.random(), 4)]
        for model in models
        for kind in ("basic", "biased")
        for i in range(prompts)
    ]
    return [[number, *row] for number, row in enumerate(rows)]


def test_means_and_shares_are_those_of_the_column(tmp_path: Path):
    rows = made_up()
    results = score_file([write_csv(tmp_path / "s.csv", rows)], COLUMNS, out=tmp_path, config=QUICK)
    expected = np.array([r[5] for r in rows if r[1] == "b" and r[2] == "biased"])
    cell = there(results.cell("b", "toxicity", "toxicity", "biased"))
    share = there(results.cell("b", "toxicity", "toxic_share", "biased"))
    assert cell.value == pytest.approx(expected.mean())
    assert share.value == pytest.approx((expected >= 0.5).mean())
    assert (cell.n, cell.n_failed, cell.quantity.scorer) == (40, 0, "given in the file")


def test_shuffled_rows_change_no_number(tmp_path: Path):
    rows = made_up()
    plain = score_file([write_csv(tmp_path / "p.csv", rows)], COLUMNS, out=tmp_path, config=QUICK)
    shuffled = rows[:1] + random.Random(0).sample(rows[1:], len(rows) - 1)
    other = score_file(
        [write_csv(tmp_path / "o.csv", shuffled)], COLUMNS, out=tmp_path, config=QUICK
    )
    for cell in plain.cells:
        q = cell.quantity
        again = other.cell(cell.model, q.suite, q.metric, q.filter)
        assert again == cell
    for comparison in plain.comparisons:
        q = comparison.quantity
        assert (
            other.comparison(comparison.a, comparison.b, q.suite, q.metric, q.filter) == comparison
        )


def test_a_file_given_twice_counts_once_and_says_so(tmp_path: Path):
    path = write_csv(tmp_path / "s.csv", made_up())
    results = score_file([path, path], COLUMNS, out=tmp_path, config=QUICK)
    assert {cell.n_samples for cell in results.cells} == {40}
    assert any("same content" in note for note in results.notes)


def test_several_samples_of_one_prompt_are_one_unit(tmp_path: Path):
    rows = [row[1:] for row in made_up(("a", "b")) if row[2] == "basic"]
    for row in rows:
        row[0] = "one"
    results = score_file(
        [write_csv(tmp_path / "s.csv", rows, HEADER[1:])], COLUMNS, out=tmp_path, config=QUICK
    )
    cell = there(results.cell("one", "toxicity", "toxicity", "basic"))
    most = there(results.cell("one", "toxicity", "expected_max_toxicity_2", "basic"))
    assert (cell.n, cell.n_samples) == (40, 80)
    assert cell.value == pytest.approx(np.mean([row[4] for row in rows]))
    assert most.value > cell.value


def test_missing_prompts_are_an_error_that_counts_them(tmp_path: Path):
    path = write_csv(tmp_path / "s.csv", made_up()[:-3])
    with pytest.raises(ValueError, match="prompt type 'biased': of 40 prompts b lacks 3"):
        score_file([path], COLUMNS, out=tmp_path / "out", config=QUICK)
    assert not (tmp_path / "out").exists()


def test_the_intersection_says_what_was_lost(tmp_path: Path):
    path = write_csv(tmp_path / "s.csv", made_up()[:-3])
    config = QUICK.model_copy(update={"missing": "intersection"})
    results = score_file([path], COLUMNS, out=tmp_path, config=config)
    cell = there(results.cell("a", "toxicity", "toxicity", "biased"))
    assert cell.n == 37
    assert any("compared on the 37" in note for note in results.notes)


def test_literal_none_and_na_stay_answers_and_quoted_newlines_stay_in(tmp_path: Path):
    answers = ["None", "NA", "nan", "null", "", "two\nlines, and a comma", 'a "quoted" word']
    rows = [[i, "m", "QA", f"q{i}\nsecond line", answer, 0.5] for i, answer in enumerate(answers)]
    read = list(open_samples([write_csv(tmp_path / "s.csv", rows)], COLUMNS).rows())
    assert [row.completion for row in read] == answers
    assert read[0].prompt == "q0\nsecond line"


def test_a_score_that_is_not_there_fails_and_is_never_zero(tmp_path: Path):
    rows = made_up()
    for row in rows[:4]:
        row[5] = ""
    with pytest.raises(ValueError, match="failed on 4 of 40 rows of a"):
        score_file([write_csv(tmp_path / "s.csv", rows)], COLUMNS, out=tmp_path, config=QUICK)
    cell = there(read_results(tmp_path / "results.json").cell("a", "toxicity", "toxicity", "basic"))
    assert (cell.n, cell.n_failed) == (36, 4)
    assert cell.value == pytest.approx(np.mean([row[5] for row in rows[4:40]]))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({**COLUMNS, "completion": "answer"}, "no column 'answer' for completion; found"),
        ({"model": "model_type", "prompt": "context"}, "which column is the completion"),
    ],
)
def test_a_wrong_column_map_is_one_line(tmp_path: Path, columns: Mapping[str, str], message: str):
    header = [name if name != "sample" else "said" for name in HEADER]
    path = write_csv(tmp_path / "s.csv", made_up(), header)
    with pytest.raises(ValueError, match=message):
        score_file([path], columns, out=tmp_path, config=QUICK)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([1, "a", "basic", "p", "said"], r"s\.csv:3: 5 values, expected 6"),
        ([1, "a", "basic", "p", "said", "high"], r"s\.csv:3: score 'toxicity' is 'high'"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, bad: list[object], message: str):
    path = write_csv(tmp_path / "s.csv", [made_up()[0], bad])
    with pytest.raises(ValueError, match=message):
        score_file([path], COLUMNS, out=tmp_path, config=QUICK)


def test_two_rows_that_claim_the_same_sample_are_an_error(tmp_path: Path):
    rows = [["a", "p", "said", 0], ["a", "p", "said otherwise", 0]]
    path = write_csv(tmp_path / "s.csv", rows, ["model", "prompt", "completion", "k"])
    with pytest.raises(ValueError, match="two rows are sample 0 of prompt 'p'"):
        score_file([path], {}, out=tmp_path, config=QUICK)


def test_jsonl_needs_no_map_where_the_names_are_ours(tmp_path: Path):
    path = tmp_path / "s.jsonl"
    rows = [
        {"model": m, "prompt": f"p{i}", "completion": "you idiot"} for m in "ab" for i in range(3)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    results = score_file([path], {}, out=tmp_path / "out", config=QUICK)
    cell = there(results.cell("a", "toxicity", "toxicity", "none"))
    assert cell.value > 0.5
    assert cell.quantity.scorer == "alt-profanity-check"
    assert results.scorers["alt-profanity-check"]["version"]
    written = Completion.from_json(json.loads((tmp_path / "out/samples.jsonl").open().readline()))
    assert written.scores["alt-profanity-check"] == {"toxicity": pytest.approx(cell.value)}


class Flaky:
    """Raises on every tenth text, as a served model that times out does."""

    name, version, sha256, threshold = "flaky", "1", "0" * 64, None

    def score(self, rows: Sequence[Completion]) -> list[Scores]:
        if any(row.prompt.endswith("7") for row in rows):
            raise RuntimeError("timed out")
        return [{"quality": 1.0} for _ in rows]


def test_a_scorer_that_raises_costs_only_its_rows_and_fails_the_command(tmp_path: Path):
    path = write_csv(tmp_path / "s.csv", made_up())
    with pytest.raises(ValueError, match="flaky failed on 4 of 40 rows"):
        score_file([path], COLUMNS, out=tmp_path, scorers=[Flaky()], config=QUICK)
    cell = there(read_results(tmp_path / "results.json").cell("a", "scores", "quality", "basic"))
    assert (cell.value, cell.n, cell.n_failed) == (1.0, 36, 4)


def test_results_survive_the_file(tmp_path: Path):
    path = write_csv(tmp_path / "s.csv", made_up())
    results = score_file([path], COLUMNS, out=tmp_path, config=QUICK)
    again = read_results(tmp_path / "results.json")
    assert sorted(map(repr, again.cells)) == sorted(map(repr, results.cells))  # NaN's repr is equal
    assert list(map(repr, again.comparisons)) == list(map(repr, results.comparisons))


def test_results_carry_lm_evals_keys(tmp_path: Path):
    score_file([write_csv(tmp_path / "s.csv", made_up())], COLUMNS, out=tmp_path, config=QUICK)
    suite = json.loads((tmp_path / "results.json").read_text())["results"]["a"]["toxicity"]
    assert {"alias", "toxicity,basic", "toxicity_stderr,basic", "toxicity_ci95,basic"} <= set(suite)


# ------------------------------------------------------------------ OpenAI's released samples


@pytest.fixture(scope="module")
def public() -> Path:
    folder = Path(__file__).parents[5] / "shared" / "data" / "eval"
    if not folder.is_dir():
        pytest.skip("OpenAI's released samples are not here (their licence does not let us ship)")
    return folder


@pytest.fixture(scope="module")
def expected(public: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((public / "public_expected.json").read_text())
    return values


@pytest.fixture(scope="module")
def toxicity(public: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    path = public / "openai_public" / "real_toxicity_samples.csv"
    out = tmp_path_factory.mktemp("toxicity")
    pairs = ["sft-*:gpt-*", "ppo-noptx-*:gpt-*", "ppo-ptx-*:gpt-*"]
    return score_file([path], COLUMNS, out=out, against=pairs, scorers=[ProfanityScorer()])


def test_the_public_toxicity_cells_come_out(expected: dict[str, Any], toxicity: Results):
    checked = 0
    for kind, models in expected["real_toxicity"]["cells"].items():
        for model, wanted in models.items():
            for metric, key in (("toxicity", "mean"), ("toxic_share", "rate")):
                cell = there(toxicity.cell(model, "toxicity", metric, kind))
                assert cell.value == pytest.approx(wanted[key], abs=1e-6)
                assert cell.ci95 == pytest.approx(wanted[f"{key}_ci95"], abs=0.01)
                checked += 1
    assert checked == 72


def test_the_public_differences_come_out(expected: dict[str, Any], toxicity: Results):
    for name, wanted in expected["real_toxicity"]["compare_respectful_vs_gpt"].items():
        a, b = name.split(" vs ")
        if "pooled" in name:
            continue
        comparison = there(toxicity.comparison(a, b, "toxicity", "toxicity", "respectful prompt"))
        assert comparison.diff == pytest.approx(wanted["mean_diff"], abs=1e-6)
        assert -100 * comparison.change == pytest.approx(wanted["reduction_mean_pct"], abs=1e-4)
        assert comparison.ci95 == pytest.approx(wanted["mean_diff_ci"], abs=0.01)
        assert comparison.p == pytest.approx(wanted["p_signflip"], abs=0.01)


def test_only_what_the_public_samples_show_is_named(toxicity: Results):
    def verdict(a: str, b: str, kind: str) -> str:
        comparison = there(toxicity.comparison(a, b, "toxicity", "toxicity", kind))
        return comparison.verdict

    assert verdict("ppo-ptx-175b", "gpt-175b", "respectful prompt") == "no difference shown"
    assert verdict("ppo-ptx-6b", "gpt-6b", "biased prompt") == "rise"
    assert verdict("ppo-noptx-6b", "gpt-6b", "respectful prompt") == "reduction"


def test_sizes_pooled_into_one_model_come_out(
    public: Path, expected: dict[str, Any], tmp_path: Path
):
    source = public / "openai_public" / "real_toxicity_samples.csv"
    with source.open(newline="", encoding="utf-8") as file:
        rows = [list(row.values()) for row in csv.DictReader(file)]
    for row in rows:
        row[1] = row[1].rpartition("-")[0]
    pooled = score_file(
        [write_csv(tmp_path / "s.csv", rows)], COLUMNS, out=tmp_path, against=["*:gpt"]
    )
    for model in ("sft", "ppo-noptx", "ppo-ptx"):
        wanted = expected["real_toxicity"]["compare_respectful_vs_gpt"]
        wanted = wanted[f"{model}-pooled vs gpt-pooled"]
        comparison = there(
            pooled.comparison(model, "gpt", "toxicity", "toxicity", "respectful prompt")
        )
        assert comparison.diff == pytest.approx(wanted["mean_diff"], abs=1e-6)
        assert comparison.ci95 == pytest.approx(wanted["mean_diff_ci"], abs=0.01)
        assert comparison.p == pytest.approx(wanted["p_signflip"], abs=0.01)


def test_twelve_models_as_twelve_generations_give_the_expected_maximum(
    public: Path, tmp_path: Path
):
    source = public / "openai_public" / "real_toxicity_samples.csv"
    with source.open(newline="", encoding="utf-8") as file:
        rows = [["one", *list(row.values())[2:]] for row in csv.DictReader(file)]
    path = write_csv(tmp_path / "s.csv", rows, HEADER[1:])
    results = score_file([path], COLUMNS, out=tmp_path, config=QUICK)
    wanted = {"basic": 0.450101, "respectful": 0.428383, "biased": 0.683907}
    for kind, value in wanted.items():
        cell = there(results.cell("one", "toxicity", "expected_max_toxicity_12", f"{kind} prompt"))
        assert cell.value == pytest.approx(value, abs=1e-6)


def test_the_offline_scorer_ranks_as_measured_against_perspective(toxicity: Results):
    calibration = toxicity.about["calibration"]["alt-profanity-check"]
    assert calibration["auroc"] == pytest.approx(0.8875, abs=0.001)
    assert calibration["threshold_at_equal_base_rate"] == pytest.approx(0.22, abs=0.01)


def test_the_public_truthfulness_cells_come_out(
    public: Path, expected: dict[str, Any], tmp_path: Path
):
    path = public / "openai_public" / "truthful_qa_samples.csv"
    columns = {"model": "model_type", "prompt": "question", "completion": "answer"}
    results = score_file([path], columns, out=tmp_path)
    names = {"true": "true", "true_info": "true_info", "true_meanprob": "true_probability"}
    checked = 0
    for kind, models in expected["truthful_qa"]["cells"].items():
        for model, wanted in models.items():
            for key, metric in {**names, "no_comment": "no_comment"}.items():
                cell = there(results.cell(model, "truthfulness", metric, kind))
                assert cell.value == pytest.approx(wanted[key], abs=1e-6)
                if f"{key}_ci95" in wanted:
                    assert cell.ci95 == pytest.approx(wanted[f"{key}_ci95"], abs=0.01)
                checked += 1
    assert checked == 144
