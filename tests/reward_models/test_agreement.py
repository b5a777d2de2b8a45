"""The annotators' ceiling on annotators whose noise is known."""

import numpy as np
import pytest

from reward_models.calibration import noise_ceiling, oracle_accuracy
from reward_models.records import Ranking


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


def found(rankings: list[Ranking]) -> dict[str, dict[str, float]]:
    ceiling = noise_ceiling(rankings, np.random.default_rng(1))
    assert ceiling is not None
    return ceiling


@pytest.mark.parametrize("chance", [0.6, 0.75, 0.84, 1.0])
def test_the_ceiling_is_the_chance_with_which_annotators_tell_the_true_order(chance: float) -> None:
    ceiling = found(noisy(4000, 3, chance))
    assert ceiling["oracle_accuracy"]["value"] == pytest.approx(chance, abs=0.02)
    low, high = ceiling["oracle_accuracy"]["ci95"]
    assert low - 0.01 <= chance <= high + 0.01


def test_the_paper_s_agreement_of_73_percent_gives_a_ceiling_of_84() -> None:
    assert oracle_accuracy(np.asarray([0.726]))[0] == pytest.approx(0.836, abs=1e-3)


def test_agreement_below_chance_gives_a_ceiling_of_one_half() -> None:
    assert oracle_accuracy(np.asarray([0.3, 0.5, 1.0])).tolist() == [0.5, 0.5, 1.0]


def test_the_ceiling_bounds_the_oracle_s_accuracy_from_above_when_pairs_differ_in_difficulty() -> (
    None
):
    hard = noisy(3000, 3, 0.5)
    easy = [ranking("e" + one.task, one.annotator, dict(one.ranks)) for one in noisy(3000, 3, 1.0)]
    ceiling = found(hard + easy)
    assert ceiling["oracle_accuracy"]["value"] > 0.76
    assert ceiling["majority_accuracy"]["value"] == pytest.approx(0.75, abs=0.02)


def test_a_hand_worked_pair_of_three_annotators() -> None:
    x_first, y_first = {"x": 1, "y": 2}, {"x": 2, "y": 1}
    ceiling = found(
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
    assert found(crowd + couple)["agreement"]["value"] == pytest.approx(6 / 8)
