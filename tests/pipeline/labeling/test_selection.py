"""The choice of tasks and outputs that tell most, on cases whose answer is plain."""

import math
import random
from pathlib import Path

import numpy as np
import pytest

from labeling_ui.store.store import Store
from pipeline.labeling.choosing import EVERY, LEAST, Chooser, is_reserved, marked
from pipeline.labeling.selection import fit_heads, order_tasks, scaled
from reward_models.records import Ranking, RankingTask, Response
from tests.benchmarks.choice import choose_outputs

RNG = np.random.default_rng(0)
PRIOR = fit_heads(np.zeros((0, 2)))


def known_first_axis() -> np.ndarray:
    """Many pairs whose better response has more of the first feature, nothing of the second."""
    return np.tile([1.0, 0.0], (400, 1))


def test_before_any_ranking_the_heads_are_the_prior() -> None:
    assert PRIOR.mean_D == pytest.approx([0, 0])
    assert pytest.approx(np.eye(2)) == PRIOR.covariance_DD


def test_the_mean_head_is_the_fit_of_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    gap_ND = RNG.normal((0.5, 0.0, -0.2), size=(50, 3))
    signs = RNG.choice([-1, 1], 50)
    theirs = LogisticRegression(fit_intercept=False, C=0.5, tol=1e-8).fit(
        gap_ND * signs[:, None], signs
    )
    assert fit_heads(gap_ND, precision=2.0).mean_D == pytest.approx(theirs.coef_[0], abs=1e-3)


def test_a_pair_of_one_unit_tells_half_the_logarithm_of_one_and_a_quarter() -> None:
    # p = 1/2, so S X C X' S = 1/4 of a prior variance of 1: 1/2 log(1 + 1/4), by hand.
    assert PRIOR.information(np.array([[0.0, 0.0], [1.0, 0.0]])) == pytest.approx(
        0.5 * math.log(1.25)
    )


def test_what_is_known_comes_after_what_is_not() -> None:
    heads = fit_heads(known_first_axis())
    known, unknown = np.array([[3.0, 0], [0, 0]]), np.array([[0, 1.0], [0, 0]])
    order = order_tasks(heads, [known, unknown], 2, rng=random.Random(0))
    assert [choice.task for choice in order] == [1, 0]


def test_outputs_that_are_alike_tell_nothing() -> None:
    assert PRIOR.information(np.ones((4, 2))) == pytest.approx(0.0)


def test_of_many_outputs_those_are_compared_that_differ_where_little_is_known() -> None:
    heads = fit_heads(known_first_axis())
    feature_KD = np.array([[0, 0], [5, 0], [0, 0.01], [0, 2.0], [0, 2.0], [0, -2.0]])
    assert choose_outputs(heads, feature_KD, 2) in ([3, 5], [4, 5])
    chosen = choose_outputs(heads, feature_KD, 3)
    assert not {3, 4} <= set(chosen)  # two alike
    assert choose_outputs(heads, feature_KD, 9) == list(range(6))


def test_after_a_choice_the_next_one_tells_something_else() -> None:
    first, again, other = ([[2.0, 0], [0, 0]], [[2.0, 0], [0, 0]], [[0, 1.5], [0, 0]])
    order = order_tasks(
        PRIOR, [np.array(task) for task in (first, again, other)], 3, rng=random.Random(0)
    )
    assert [choice.task for choice in order] == [0, 2, 1]


def test_the_lazy_order_is_that_of_a_slow_search() -> None:
    features = [RNG.normal(size=(int(RNG.integers(2, 5)), 4)) for _ in range(12)]
    start = fit_heads(RNG.normal(size=(9, 4)))
    heads, left, slow = start, set(range(12)), []
    while left:
        best = max(left, key=lambda task: heads.information(features[task]) / len(features[task]))
        heads = heads.after(features[best])
        left.remove(best)
        slow.append(best)
    order = order_tasks(start, features, 12, rng=random.Random(0))
    assert [choice.task for choice in order] == slow


def test_reserved_tasks_come_at_their_share_in_their_own_order() -> None:
    features = [RNG.normal(size=(2, 3)) for _ in range(300)]
    reserved = list(range(0, 300, 2))
    order = order_tasks(
        fit_heads(np.zeros((0, 3))),
        features,
        200,
        reserved=reserved,
        random_share=0.2,
        rng=random.Random(0),
    )
    drawn = [choice.task for choice in order if choice.is_random]
    assert drawn == reserved[: len(drawn)]
    assert 25 < len(drawn) < 55
    assert len({choice.task for choice in order}) == 200


def test_scaled_features_lie_one_apart() -> None:
    pairs = [RNG.normal(size=(2, 5)) * 7 for _ in range(50)]
    gaps = [one[0] - one[1] for one in scaled(pairs)]
    assert np.mean([gap @ gap for gap in gaps]) == pytest.approx(1.0)


def test_a_room_hands_out_what_is_known_least_once_some_is_ranked(tmp_path: Path) -> None:
    outputs = tuple(Response(i, f"text {i}", "m", {}) for i in "ab")
    tasks = [RankingTask(f"t{n}", "p", outputs) for n in range(100)]
    features = [np.array([[1.0, 0], [0, 0]] if n < 60 else [[0, 1.0], [0, 0]]) for n in range(100)]
    chooser, store = Chooser(tasks, features), Store(tmp_path / "s.sqlite")
    store.add_tasks(tasks)
    assert not chooser.refresh(store)  # nothing is ranked yet
    ranked = [Ranking(f"t{n}", "ada", "human", {"a": 1, "b": 2}) for n in range(LEAST + 20)]
    store.submit_all(ranked)
    assert chooser.refresh(store)
    assert not chooser.refresh(store)  # too little is new
    with store.database.read() as connection:
        from labeling_ui.store.leases import next_task

        row = next_task(connection, "ben", 0.0)
    assert row is not None
    first_chosen = next(t for t in tasks[60:] if not is_reserved(t.id)).id
    assert is_reserved(row.id) or row.id == first_chosen
    store.submit_all(
        [Ranking(f"t{n}", "ada", "human", {"a": 1, "b": 2}) for n in range(30, 30 + EVERY)]
    )
    assert chooser.refresh(store)
    store.close()


def test_what_is_reserved_depends_on_the_task_alone_and_is_a_fifth() -> None:
    outputs = tuple(Response(i, "", "m", {}) for i in "ab")
    rows = marked([RankingTask(f"t{n}", "p", outputs) for n in range(1000)])
    share = np.mean([row.extra["drawn"] == "random" for row in rows])
    assert 0.16 < share < 0.24
