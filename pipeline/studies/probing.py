"""`rlhf probe`: how well each layer of a frozen model holds a label, in figures and numbers.

probe.json         a row a pooling and layer: accuracy, control, selectivity, with intervals
probe.html         the figure
representations/   of the texts, stored so that an interrupted command resumes
fits.jsonl         the probes fitted so far, for the same reason

The accuracy's interval is the binomial one over test texts; two poolings of a layer are compared on
the same texts by McNemar's exact test.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from pipeline.evaluation.statistics import mcnemar_p, rate_interval, wilson_interval
from pipeline.runs.display import Display
from reward_models.atomic_files import write_json, write_jsonl
from reward_models.row_files import read_jsonl
from stages.data.demonstrations import source_rows
from stages.probing import (
    FrozenModel,
    Kind,
    Pooling,
    Representations,
    control_accuracy,
    fit_probe,
    represent,
)
from stages.progress import Step

Texts = list[tuple[str, str]]  # text and label, in the order of the source


def load_labelled_texts(source: str, *, text: str = "text", label: str = "label") -> Texts:
    """Return all rows; ValueError `file:line: ...` at the first without a text or label."""
    texts: Texts = []
    for where, row in source_rows(source):
        for field in (text, label):
            if field not in row:
                raise ValueError(f"{where}: no field '{field}'; it has {', '.join(map(str, row))}")
        content, name = row[text], row[label]
        if not isinstance(content, str) or not content.strip():
            raise ValueError(
                f"{where}: {text} is {content!r:.40}; expected a text that is not empty"
            )
        if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
            raise ValueError(f"{where}: {label} is {name!r:.40}; expected a word or a whole number")
        texts.append((content, str(name)))
    num_labels = len(set(labels_of(texts)))
    if num_labels < 2:
        raise ValueError(f"{source}: {num_labels} label(s) in {len(texts)} rows; expected 2+")
    return texts


def labels_of(texts: Texts) -> list[str]:
    """Return the label of each text."""
    return [label for _, label in texts]


def split_off(data: Texts, share: float, seed: int) -> tuple[Texts, Texts]:
    """Return training texts and a random `share` of test texts, at least one of each."""
    indices = list(range(len(data)))
    Random(f"probe/{seed}").shuffle(indices)
    held = min(len(data) - 1, max(1, round(share * len(data))))
    test, train = sorted(indices[:held]), sorted(indices[held:])
    return [data[index] for index in train], [data[index] for index in test]


ENCODER_POOLINGS: tuple[Pooling, ...] = ("cls", "mean")
DECODER_POOLINGS: tuple[Pooling, ...] = ("last", "mean")


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """The settings of a probe; no poolings or layers mean those that make sense, and all."""

    poolings: tuple[Pooling, ...] = ()
    layers: tuple[int, ...] = ()
    kind: Kind = "linear"
    strength: float = 1.0  # of the L2 penalty
    max_tokens: int = 128
    batch_size: int = 64
    control: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """One fitted probe: its accuracy on the test texts and on the control."""

    pooling: Pooling
    layer: int
    accuracy: float
    ci95: tuple[float, float]
    training_accuracy: float
    control_accuracy: float | None
    selectivity: float | None
    correct: tuple[int, ...]  # indices of the test texts


def run_probe(
    frozen: FrozenModel,
    train: Texts,
    test: Texts,
    settings: ProbeSettings,
    out: Path,
    display: Display,
) -> list[Probe]:
    """Represent the texts, fit every probe that is not stored yet, and write out/probe.json.

    Raises ValueError for a layer or pooling that the model does not have.
    """
    poolings, layers = _chosen(frozen, settings)
    display.begin("read", f"{len(train) + len(test)} texts")
    stored = represent(
        frozen,
        [text for text, _ in (*train, *test)],
        out / "representations",
        poolings=poolings,
        layers=layers,
        max_tokens=settings.max_tokens,
        batch_size=settings.batch_size,
        report=display.step,
    )
    display.finish("")
    path, fingerprint = out / "fits.jsonl", _fingerprint(out, train, test, settings)
    fits = _stored_fits(path, fingerprint)
    pairs = [(pooling, layer) for pooling in poolings for layer in layers]
    labels = np.array(labels_of(train)), np.array(labels_of(test))
    display.begin("fit", f"{len(pairs)} {settings.kind} probes")
    for done, (pooling, layer) in enumerate(pairs, 1):
        if (pooling, layer) not in fits:
            fits[pooling, layer] = _fitted(stored, pooling, layer, labels, settings)
            rows = ({**asdict(fit), "fingerprint": fingerprint} for fit in fits.values())
            write_jsonl(path, rows)
        metrics = {"probe/accuracy": fits[pooling, layer].accuracy}
        display.step(Step(done, len(pairs), metrics))
    display.finish("")
    probes = [fits[pair] for pair in pairs]
    content = {
        "model": frozen.name,
        "classes": sorted(set(labels_of(train))),
        "n_train": len(train),
        "n_test": len(test),
        "majority": majority_share(test),
        "settings": asdict(settings),
        "probes": [{k: v for k, v in asdict(one).items() if k != "correct"} for one in probes],
        "comparisons": comparisons(probes),
    }
    write_json(out / "probe.json", content)
    return probes


def majority_share(data: Texts) -> float:
    """Return the accuracy of always predicting the most frequent label."""
    return Counter(labels_of(data)).most_common(1)[0][1] / len(data)


def _chosen(
    frozen: FrozenModel, settings: ProbeSettings
) -> tuple[tuple[Pooling, ...], tuple[int, ...]]:
    poolings = settings.poolings or (DECODER_POOLINGS if frozen.is_decoder else ENCODER_POOLINGS)
    for pooling in poolings:
        frozen.check_pooling(pooling)
    layers = settings.layers or tuple(range(frozen.layers))
    if unknown := [layer for layer in layers if not 0 <= layer < frozen.layers]:
        raise ValueError(
            f"layer {unknown[0]}: {frozen.name} has layers 0 (embeddings) to {frozen.layers - 1}"
        )
    return poolings, layers


def _fitted(
    stored: Representations,
    pooling: Pooling,
    layer: int,
    labels: tuple[Any, Any],
    settings: ProbeSettings,
) -> Probe:
    vectors_ND, (train_N, test_N) = stored.read(pooling, layer), labels
    train_ND, test_ND = vectors_ND[: len(train_N)], vectors_ND[len(train_N) :]
    kind, strength, seed = settings.kind, settings.strength, settings.seed
    probed = fit_probe(train_ND, train_N, test_ND, test_N, kind=kind, strength=strength, seed=seed)
    control = None
    if settings.control:
        control = control_accuracy(train_ND, train_N, kind=kind, strength=strength, seed=seed)
    right, total = int(probed.correct_N.sum()), len(test_N)
    interval = wilson_interval if total < 30 or right in (0, total) else rate_interval
    return Probe(
        pooling,
        layer,
        probed.accuracy,
        interval(right, total),
        probed.training_accuracy,
        control,
        None if control is None else probed.accuracy - control,
        tuple(int(index) for index in np.flatnonzero(probed.correct_N)),
    )


def _stored_fits(path: Path, fingerprint: str) -> dict[tuple[Pooling, int], Probe]:
    """Return the probes fitted so far; those under another fingerprint are dropped."""
    fits = {}
    for _, row in read_jsonl(path) if path.is_file() else ():
        if row.pop("fingerprint") == fingerprint:
            row |= {"ci95": tuple(row["ci95"]), "correct": tuple(row["correct"])}
            fits[row["pooling"], row["layer"]] = Probe(**row)
    return fits


def _fingerprint(out: Path, train: Texts, test: Texts, settings: ProbeSettings) -> str:
    about = json.loads((out / "representations/about.json").read_text(encoding="utf-8"))
    own = asdict(settings) | {"poolings": None, "layers": None, "batch_size": None}
    parts = [
        about["weights_sha256"],
        about["texts_sha256"],
        labels_of(train),
        labels_of(test),
        own,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def comparisons(probes: Sequence[Probe]) -> list[dict[str, Any]]:
    """Compare each two poolings of one layer, paired by text."""
    rows = []
    for first in probes:
        for second in probes:
            if first.layer != second.layer or first.pooling >= second.pooling:
                continue
            a, b = set(first.correct), set(second.correct)
            rows.append(
                {
                    "layer": first.layer,
                    "a": first.pooling,
                    "b": second.pooling,
                    "difference": first.accuracy - second.accuracy,
                    "p_mcnemar": mcnemar_p(len(a - b), len(b - a)),
                }
            )
    return rows
