"""Annotators' rankings, ratings and flags as evaluation, by hand."""

from pathlib import Path

import pytest

from pipeline.config.evaluation import EvaluationConfig
from pipeline.evaluation.external.human_labels import score_labels
from pipeline.evaluation.samples.results import Results, read_results
from reward_models.records import Ranking, RankingTask, Response
from tests.pipeline.made_up_run import there

CONFIG = EvaluationConfig(baseline="sft", resamples=200, sign_flips=200)


def task(name: str) -> RankingTask:
    models = {"a": "sft", "b": "ppo", "c": "ppo"}
    responses = tuple(Response(f"{name}-{r}", r, model, {}) for r, model in models.items())
    return RankingTask(name, f"prompt {name}", responses)


def ranking(name: str, who: str, ranks: str, flagged: str = "", **more: object) -> Ranking:
    order = {f"{name}-{letter}": int(rank) for letter, rank in zip("abc", ranks, strict=True)}
    flags = {f"{name}-{letter}": ["hallucination"] for letter in flagged}
    ratings = {f"{name}-{letter}": 8 - int(rank) for letter, rank in zip("abc", ranks, strict=True)}
    return Ranking(name, who, "human", order, ratings=ratings, flags=flags, **more)  # type: ignore[arg-type]


TASKS = [task("1"), task("2")]
# Task 1: b beats a, c ties with a; by the other annotator both lose. Task 2: both win.
RANKINGS = [
    ranking("1", "ann", "212", flagged="a"),
    ranking("1", "bob", "123", flagged="ab"),
    ranking("2", "ann", "312"),
]


def value(results: Results, model: str, metric: str) -> float:
    cell = there(results.cell(model, "human_labels", metric))
    return cell.value


def test_win_rates_ratings_and_flags_by_hand(tmp_path: Path):
    results = score_labels(TASKS, RANKINGS, out=tmp_path, config=CONFIG)
    assert value(results, "ppo", "win_rate") == pytest.approx(((1 + 0.5 + 0 + 0) / 4 + 1) / 2)
    assert value(results, "sft", "rating") == pytest.approx(((6 + 7) / 2 + 5) / 2)
    assert value(results, "sft", "hallucination") == pytest.approx((1 + 0) / 2)
    assert value(results, "ppo", "hallucination") == pytest.approx((1 / 4 + 0) / 2)
    cell = there(results.cell("ppo", "human_labels", "rating"))
    assert (cell.n, cell.n_samples, cell.quantity.unit) == (2, 6, "prompt")


def test_the_order_of_rankings_changes_nothing(tmp_path: Path):
    one = score_labels(TASKS, RANKINGS, out=tmp_path / "1", config=CONFIG)
    other = score_labels(TASKS, RANKINGS[::-1], out=tmp_path / "2", config=CONFIG)
    assert list(map(repr, one.cells)) == list(map(repr, other.cells))


def test_a_question_that_was_not_answered_is_no_no(tmp_path: Path):
    rankings = [
        ranking("1", "ann", "123", flagged="a", extra={"flags_no": {"1-b": ["hallucination"]}})
    ]
    results = score_labels(TASKS, rankings, out=tmp_path, config=CONFIG)
    cell = there(results.cell("ppo", "human_labels", "hallucination"))
    assert (cell.value, cell.n_samples) == (0.0, 1)


def test_agreement_and_simulated_labels_are_said(tmp_path: Path):
    results = score_labels(TASKS, RANKINGS, out=tmp_path, config=CONFIG)
    # Of task 1's pairs a-b, a-c, b-c both order a-b (differently) and b-c (alike); a-c is a tie.
    assert any("50.0% of 2 pairs alike" in note for note in results.notes)
    assert not any("nothing here says what people like" in note for note in results.notes)
    machine = [Ranking("1", "p", "simulated", RANKINGS[0].ranks)]
    notes = score_labels(TASKS, machine, out=tmp_path, config=CONFIG).notes
    assert notes[0].startswith("labels are simulated")
    assert "agreement is unknown" in notes[1]


def test_results_survive_the_file_and_nothing_ranked_is_one_line(tmp_path: Path):
    results = score_labels(TASKS, RANKINGS, out=tmp_path, config=CONFIG)
    assert read_results(tmp_path / "results.json").models == results.models == ["sft", "ppo"]
    with pytest.raises(ValueError, match="no ranking in it"):
        score_labels(TASKS, [], out=tmp_path, config=CONFIG)
