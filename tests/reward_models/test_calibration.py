"""Accuracy, calibration and length on cases whose answer is known."""

import numpy as np
import pytest

from reward_models.calibration import (
    Comparisons,
    by_confidence,
    calibration_error,
    length_correlation,
    noise_ceiling,
    oracle_accuracy,
    pair_accuracy,
)
from reward_models.intervals import rate_by_prompt
from reward_models.records import Ranking


def comparisons(gaps: list[float], prompts: list[int]) -> Comparisons:
    same = np.zeros(len(gaps), dtype=np.bool_)
    return Comparisons(np.asarray(gaps), np.asarray(prompts), same)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def calibrated(count: int) -> Comparisons:
    """Winners drawn with exactly the predicted chance."""
    draw = np.random.default_rng(1)
    gap = np.abs(draw.normal(0, 1.5, count))
    sign = np.where(draw.random(count) < 1 / (1 + np.exp(-gap)), 1, -1)
    return comparisons((gap * sign).tolist(), list(range(count)))


def test_accuracy_counts_right_pairs_and_half_of_equal_scores() -> None:
    result = pair_accuracy(comparisons([1.0, 2.0, -1.0, 0.0], [0, 0, 1, 1]), rng())
    assert result.value == pytest.approx(2.5 / 4)
    assert (result.num_pairs, result.num_prompts) == (4, 2)


def test_the_interval_widens_when_pairs_share_a_prompt() -> None:
    draw = np.random.default_rng(2)
    right = np.repeat(draw.random(50) < 0.7, 6).astype(float)
    by_prompt = rate_by_prompt(right, np.repeat(np.arange(50), 6), rng())
    as_if_alone = rate_by_prompt(right, np.arange(300), rng())
    assert by_prompt.high - by_prompt.low > 2 * (as_if_alone.high - as_if_alone.low)


def test_the_interval_covers_the_truth_about_nineteen_times_in_twenty() -> None:
    draw = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        result = rate_by_prompt((draw.random(80) < 0.7).astype(float), np.arange(80), draw)
        covered += result.low <= 0.7 <= result.high
    assert 180 <= covered <= 199


def test_nothing_to_average_gives_null_not_zero() -> None:
    assert pair_accuracy(comparisons([], []), rng()).to_json() == {
        "value": None,
        "ci95": None,
        "n_pairs": 0,
        "n_prompts": 0,
    }


def test_a_calibrated_model_is_as_often_right_as_it_predicts() -> None:
    rows = by_confidence(calibrated(20_000), rng())
    assert [round(row["from"], 1) for row in rows] == [0.5, 0.6, 0.7, 0.8, 0.9]
    for row in rows:
        assert row["accuracy"]["value"] == pytest.approx(row["predicted"], abs=0.02)
    assert calibration_error(calibrated(20_000)) == pytest.approx(0.0, abs=0.02)


def test_doubled_scores_are_overconfident_and_no_less_accurate() -> None:
    fair = calibrated(20_000)
    loud = comparisons((2 * fair.gap_N).tolist(), fair.prompt_N.tolist())
    assert pair_accuracy(loud, rng()) == pair_accuracy(fair, rng())
    error = calibration_error(loud)
    assert error is not None
    assert error > 0.05


def test_certain_predictions_fall_into_the_last_bin() -> None:
    rows = by_confidence(comparisons([50.0, 900.0], [0, 1]), rng())
    assert [row["accuracy"]["n_pairs"] for row in rows] == [0, 0, 0, 0, 2]


def test_length_correlation_within_prompts_ignores_what_prompts_ask_for() -> None:
    draw = np.random.default_rng(4)
    prompt = np.repeat(np.arange(200), 4)
    offset = np.repeat(draw.normal(0, 10, 200), 4)
    length, score = offset + draw.normal(0, 1, 800), offset + draw.normal(0, 1, 800)
    result = length_correlation(score, length, prompt, rng())
    assert result["overall"] > 0.9
    assert abs(result["within_prompt"]) < 0.1
    assert result["ci95"][0] < result["within_prompt"] < result["ci95"][1]


def test_length_correlation_is_that_of_numpy_over_centred_values() -> None:
    draw = np.random.default_rng(5)
    score, length, prompt = draw.normal(size=60), draw.normal(size=60), np.repeat(np.arange(20), 3)
    centred = [x - x.reshape(20, 3).mean(1).repeat(3) for x in (score, length)]
    result = length_correlation(score, length, prompt, rng())
    assert result["within_prompt"] == pytest.approx(np.corrcoef(*centred)[0, 1])
    assert result["overall"] == pytest.approx(np.corrcoef(score, length)[0, 1])


def test_length_correlation_is_null_where_no_length_varies() -> None:
    result = length_correlation(np.arange(4.0), np.ones(4), np.zeros(4, dtype=np.int64), rng())
    assert result["within_prompt"] is None
    assert result["overall"] is None


def ranking(task: str, annotator: str, ranks: dict[str, int], **more: str) -> Ranking:
    return Ranking(task, annotator, "simulated", ranks, **more)  # type: ignore[arg-type]


def noisy(tasks: int, annotators: int, chance: float) -> list[Ranking]:
    """Two responses a task; every annotator prefers the first with `chance`."""
    draw = np.random.default_rng(0)
    return [
        ranking(
            f"t{task}",
            f"a{person}",
            {"x": 1, "y": 2} if draw.random() < chance else {"x": 2, "y": 1},
        )
        for task in range(tasks)
        for person in range(annotators)
    ]


def ceiling_of(rankings: list[Ranking]) -> dict[str, dict[str, float]]:
    ceiling = noise_ceiling(rankings, np.random.default_rng(1))
    assert ceiling is not None
    return ceiling


@pytest.mark.parametrize("chance", [0.6, 0.75, 0.84, 1.0])
def test_the_ceiling_is_the_chance_with_which_annotators_tell_the_true_order(chance: float) -> None:
    ceiling = ceiling_of(noisy(4000, 3, chance))
    assert ceiling["oracle_accuracy"]["value"] == pytest.approx(chance, abs=0.02)
    low, high = ceiling["oracle_accuracy"]["ci95"]
    assert low - 0.01 <= chance <= high + 0.01


def test_the_paper_s_agreement_of_73_percent_gives_a_ceiling_of_84() -> None:
    assert oracle_accuracy(np.asarray([0.726]))[0] == pytest.approx(0.836, abs=1e-3)


def test_agreement_below_chance_gives_a_ceiling_of_one_half() -> None:
    assert oracle_accuracy(np.asarray([0.3, 0.5, 1.0])).tolist() == [0.5, 0.5, 1.0]


def test_the_ceiling_bounds_the_oracle_s_accuracy_from_above_when_pairs_differ_in_difficulty():
    x_first, y_first = {"x": 1, "y": 2}, {"x": 2, "y": 1}
    ceiling = ceiling_of(
        [ranking("t", "a", x_first), ranking("t", "b", x_first), ranking("t", "c", y_first)]
    )
    assert ceiling["agreement"]["value"] == pytest.approx(1 / 3)  # shares 1/2, 1/2 and 0
    assert ceiling["majority_accuracy"]["value"] == pytest.approx(1 / 3)  # split, split, wrong


def test_ties_and_skipped_rankings_take_no_part() -> None:
    first = ranking("t", "a", {"x": 1, "y": 2})
    tied = ranking("t", "b", {"x": 1, "y": 1})
    skipped = ranking("t", "c", {}, skipped="unclear")
    assert noise_ceiling([first, tied, skipped], np.random.default_rng(0)) is None


def test_one_annotator_a_task_gives_no_ceiling() -> None:
    assert noise_ceiling(noisy(10, 1, 1.0), np.random.default_rng(0)) is None


def test_every_annotator_s_order_weighs_the_same_however_many_there_are() -> None:
    crowd = [ranking("t", f"a{person}", {"x": 1, "y": 2}) for person in range(6)]
    couple = [ranking("u", "a", {"x": 1, "y": 2}), ranking("u", "b", {"x": 2, "y": 1})]
    assert ceiling_of(crowd + couple)["agreement"]["value"] == pytest.approx(6 / 8)
