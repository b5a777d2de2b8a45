"""Probing: the accuracy with which a simple classifier predicts a label from frozen vectors.

A probe is a linear classifier (multinomial logistic regression) or an MLP with one hidden layer,
fitted on standardised vectors of one layer. A strong probe may learn a task that the representation
does not hold, so each is set against a control task (Hewitt & Liang 2019): every text gets a random
label, drawn once from the task's own label frequencies. There is nothing in such a label but the
text's identity, so a probe that predicts it has memorised. As in their paper the control is scored
on inputs whose random label was seen in fitting; for whole texts those are the training texts.

    selectivity = accuracy on the task (test texts) - accuracy on the control (training texts)

Dimension key:  N texts,  D hidden size.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

Kind = Literal["linear", "mlp"]
Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]

MLP_WIDTH = 128  # units of the hidden layer
MLP_EPOCHS = 100
MLP_BATCH = 200  # texts


@dataclass(frozen=True, slots=True)
class Probed:
    """The accuracy of a probe: a flag a test text, and the share of training texts."""

    correct_N: NDArray[np.bool_]
    training_accuracy: float

    @property
    def accuracy(self) -> float:
        """The share of the test texts."""
        return float(self.correct_N.mean())


def fit_probe(
    train_ND: Vectors,
    label_N: Labels,
    test_ND: Vectors,
    test_label_N: Labels,
    *,
    kind: Kind,
    strength: float,
    seed: int,
) -> Probed:
    """Fit on the training vectors, score on the test vectors.

    The loss summed over training texts is penalised by strength / 2 * |weights|^2.
    """
    scaler = StandardScaler().fit(train_ND)
    probe = _new_probe(kind, strength, len(train_ND), seed)
    scaled_ND = scaler.transform(train_ND)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the iteration limit is a choice
        probe.fit(scaled_ND, label_N)
    correct_N = probe.predict(scaler.transform(test_ND)) == test_label_N
    training = float((probe.predict(scaled_ND) == label_N).mean())
    return Probed(np.asarray(correct_N, dtype=bool), training)


def control_accuracy(
    train_ND: Vectors, label_N: Labels, *, kind: Kind, strength: float, seed: int
) -> float:
    """Return the share of training texts whose random label the same probe reproduces."""
    random_N = control_labels(label_N, seed)
    probed = fit_probe(
        train_ND, random_N, train_ND[:1], random_N[:1], kind=kind, strength=strength, seed=seed
    )
    return probed.training_accuracy


def control_labels(label_N: Labels, seed: int) -> Labels:
    """Return a random label a text, with the frequencies of the real ones (a permutation)."""
    return np.random.default_rng(seed).permutation(label_N)


def label_numbers(labels: Sequence[str], classes: Sequence[str]) -> Labels:
    """Return labels as indices of `classes`; ValueError for one that is not there."""
    index = {name: number for number, name in enumerate(classes)}
    unknown = sorted(set(labels) - set(index))
    if unknown:
        raise ValueError(f"label '{unknown[0]}' is in the test texts but not in the training texts")
    return np.array([index[label] for label in labels], dtype=np.int64)


def _new_probe(
    kind: Kind, strength: float, num_texts: int, seed: int
) -> LogisticRegression | MLPClassifier:
    match kind:
        case "linear":
            return LogisticRegression(C=1 / strength, max_iter=300, random_state=seed)
        case "mlp":  # scikit-learn adds the whole penalty, over the batch's size, to each batch
            batch = min(MLP_BATCH, num_texts)
            return MLPClassifier(
                (MLP_WIDTH,),
                alpha=strength * batch / num_texts,
                batch_size=batch,
                max_iter=MLP_EPOCHS,
                random_state=seed,
            )
        case _:
            assert_never(kind)
