"""The choice of what to rank next: the tasks that teach a linear head most.

The ensemble of heads on cached features is held in closed form. A head w has the prior
N(0, I / precision); after pairs with gaps x = feature(better) - feature(worse), the posterior of
the Bradley-Terry model P(better) = sigmoid(w . x) is taken as N(m, C) at its mode (Laplace):

    C^-1 = precision I + sum p (1 - p) x x',        p = sigmoid(m . x)

Unlike an ensemble of fitted heads, it does not agree where nothing was ranked yet. To rank a task
with gaps X between its outputs tells about the head, in nats (D-optimality, MacKay 1992),

    information = 1/2 log det(I + S X C X' S),       S = diag(sqrt(p (1 - p))),

which is small where the order is known (p near 0 or 1) and where outputs are alike (x near 0).
After each choice C is updated as if the task were ranked, so that the next tells something else.

Dimension key:  N pairs,  D features,  K outputs of a task,  P pairs of them,  B tasks.
"""

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

Floats = NDArray[np.float64]
PRECISION = 1.0  # of the prior, for features of `scaled`


@dataclass(frozen=True, slots=True)
class Heads:
    """All linear heads that fit the rankings so far: a normal distribution over them."""

    mean_D: Floats
    covariance_DD: Floats

    def scores(self, feature_KD: Floats) -> Floats:
        """Return the mean head's score of each output."""
        score_K: Floats = feature_KD @ self.mean_D
        return score_K

    def information(self, feature_KD: Floats) -> float:
        """Return the nats about the head that an order of these outputs gives."""
        kernel_KK = feature_KD @ self.covariance_DD @ feature_KD.T
        return information(self.scores(feature_KD), kernel_KK)

    def after(self, feature_KD: Floats) -> "Heads":
        """Return the heads once these are ranked; the mean stays, as the order is not known yet."""
        spread_KD = feature_KD @ self.covariance_DD
        root_P, variance_PP = _pairs(self.scores(feature_KD), spread_KD @ feature_KD.T)
        half_PD = root_P[:, None] * _gaps(spread_KD)
        inner_PP = np.eye(len(root_P)) + root_P[:, None] * variance_PP * root_P
        return Heads(
            self.mean_D, self.covariance_DD - half_PD.T @ np.linalg.solve(inner_PP, half_PD)
        )


def information(score_K: Floats, kernel_KK: Floats) -> float:
    """Return what ranking outputs with these scores and covariances tells, in nats."""
    root_P, variance_PP = _pairs(score_K, kernel_KK)
    inner_PP = np.eye(len(root_P)) + root_P[:, None] * variance_PP * root_P
    return float(0.5 * np.linalg.slogdet(inner_PP)[1])


def _pairs(score_K: Floats, kernel_KK: Floats) -> tuple[Floats, Floats]:
    """Return sqrt(p (1 - p)) of each pair, and X C X', from scores and kernel of the outputs.

    p is the mean over all heads, nearly (MacKay 1992).
    """
    variance_PP = _gaps(_gaps(kernel_KK).T)
    scale_P = np.sqrt(1.0 + np.pi / 8.0 * np.maximum(np.diag(variance_PP), 0.0))
    p_P = expit(_gaps(score_K[:, None])[:, 0] / scale_P)
    return np.sqrt(p_P * (1.0 - p_P)), variance_PP


@dataclass(frozen=True, slots=True)
class Choice:
    """A task by number, and true where it was drawn at random, blind to what is known."""

    task: int
    is_random: bool


def scaled(features: Sequence[Floats]) -> list[Floats]:
    """Return the features of each task's outputs, so that two outputs of a task lie 1 apart.

    That is on average, in the root mean square; it makes one `PRECISION` fit every model.
    """
    gap_ND = np.concatenate([_gaps(feature_KD) for feature_KD in features])
    size = float(np.sqrt((gap_ND**2).sum(1).mean())) or 1.0
    return [feature_KD / size for feature_KD in features]


def _gaps(feature_KD: Floats) -> Floats:
    """Return the differences of every two outputs, (P, D), in the order of `combinations`."""
    first_P, second_P = np.triu_indices(len(feature_KD), 1)
    gap_PD: Floats = feature_KD[first_P] - feature_KD[second_P]
    return gap_PD


def fit_heads(gap_ND: Floats, precision: float = PRECISION) -> Heads:
    """Return the heads after pairs with these gaps, better minus worse; none: the prior."""
    num_features = gap_ND.shape[1]

    def loss(mean_D: Floats) -> tuple[float, Floats]:
        margin_N = gap_ND @ mean_D
        slope_N = -expit(-margin_N)
        value = np.logaddexp(0.0, -margin_N).sum() + 0.5 * precision * mean_D @ mean_D
        return float(value), gap_ND.T @ slope_N + precision * mean_D

    mean_D = minimize(loss, np.zeros(num_features), jac=True, method="L-BFGS-B").x
    p_N = expit(gap_ND @ mean_D)
    weight_N = p_N * (1.0 - p_N)
    inverse_DD = precision * np.eye(num_features) + gap_ND.T @ (weight_N[:, None] * gap_ND)
    return Heads(mean_D, np.linalg.inv(inverse_DD))


def order_tasks(
    heads: Heads,
    features: Sequence[Floats],
    num_tasks: int,
    *,
    reserved: Sequence[int] = (),
    random_share: float = 0.0,
    rng: random.Random,
) -> list[Choice]:
    """Return which tasks come next, first to last; no task twice.

    `reserved` are tasks that were drawn beforehand, blind to what is known; they come in their own
    order, at about `random_share` of all. Each other is the task that tells most for each output
    that is to be read, given all before it. Lazily greedy: what a task tells only falls as others
    are ranked (Minoux 1978).
    """
    drawn = list(reserved)
    left = set(range(len(features))) - set(drawn)
    queue = [
        (-heads.information(features[task]) / len(features[task]), task, 0) for task in sorted(left)
    ]
    heapq.heapify(queue)
    choices: list[Choice] = []
    while (left or drawn) and len(choices) < num_tasks:
        is_random = bool(drawn) and (not left or rng.random() < random_share)
        if is_random:
            task = drawn.pop(0)
        else:
            task = _best(heads, features, queue, len(choices))
            left.remove(task)
        heads = heads.after(features[task])
        choices.append(Choice(task, is_random))
    return choices


def _best(
    heads: Heads,
    features: Sequence[Floats],
    queue: list[tuple[float, int, int]],
    age: int,
) -> int:
    """Pop the task that tells most by now from a queue of bounds, each with the age it is of."""
    while True:
        _, task, known = heapq.heappop(queue)
        if known == age:
            return task
        value = heads.information(features[task]) / len(features[task])
        heapq.heappush(queue, (-value, task, age))
