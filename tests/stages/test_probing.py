"""Probes and what they read: planted labels, hand-pooled states, batches, resume, control."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from stages.probing import (
    FrozenModel,
    Pooling,
    control_accuracy,
    control_labels,
    fit_probe,
    load_frozen,
    pooled,
    represent,
)
from stages.progress import Step
from tests.reward_models.tiny import tiny_base
from tests.stages.tiny_encoder import tiny_encoder

TEXTS = ["w0 w1 good", "bad w3 w4 w5 w6 w7", "w1", "good good bad w9", "w2 w2"]
POOLINGS: tuple[Pooling, ...] = ("mean", "cls")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> FrozenModel:
    return load_frozen(str(tiny_encoder(tmp_path_factory.mktemp("encoder"))))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> FrozenModel:
    return load_frozen(str(tiny_base(tmp_path_factory.mktemp("decoder"))))


def vectors(frozen: FrozenModel, folder: Path, poolings: tuple[Pooling, ...], batch_size: int):
    stored = represent(
        frozen,
        TEXTS,
        folder,
        poolings=poolings,
        layers=range(frozen.layers),
        max_tokens=32,
        batch_size=batch_size,
    )
    return {(p, n): stored.read(p, n) for p in poolings for n in range(frozen.layers)}


def test_pooling_counts_only_a_texts_own_tokens():
    hidden_BLD = torch.tensor([[[1.0], [3.0], [100.0]], [[2.0], [4.0], [9.0]]])
    mask_BL = torch.tensor([[True, True, False], [True, True, True]])
    assert pooled(hidden_BLD, mask_BL, "mean").tolist() == [[2.0], [5.0]]
    assert pooled(hidden_BLD, mask_BL, "last").tolist() == [[3.0], [9.0]]
    assert pooled(hidden_BLD, mask_BL, "cls").tolist() == [[1.0], [2.0]]


def test_representations_equal_those_of_each_text_read_alone(encoder, tmp_path):
    by_layer = vectors(encoder, tmp_path / "r", POOLINGS, batch_size=3)
    model = AutoModel.from_pretrained(encoder.name).eval()
    tokenizer = AutoTokenizer.from_pretrained(encoder.name)
    for row, text in enumerate(TEXTS):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        for layer, hidden_1LD in enumerate(states.hidden_states):
            mean_D, first_D = hidden_1LD[0].mean(0), hidden_1LD[0, 0]
            torch.testing.assert_close(torch.tensor(by_layer["mean", layer][row]), mean_D)
            torch.testing.assert_close(torch.tensor(by_layer["cls", layer][row]), first_D)


def test_a_decoders_representations_do_not_depend_on_the_batch(decoder, tmp_path):
    poolings: tuple[Pooling, ...] = ("last", "mean")
    one = vectors(decoder, tmp_path / "one", poolings, batch_size=1)
    all_at_once = vectors(decoder, tmp_path / "all", poolings, batch_size=5)
    for name in one:
        np.testing.assert_allclose(one[name], all_at_once[name], atol=1e-5)


def test_the_first_token_of_a_decoder_is_no_summary(decoder, tmp_path):
    with pytest.raises(ValueError, match=r"is a decoder: its first token .*expected last or mean"):
        vectors(decoder, tmp_path, ("cls",), batch_size=2)


def test_an_interrupted_extraction_reads_only_what_is_missing(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("stages.probing.CHUNK", 2)
    settings = {"poolings": POOLINGS, "layers": (0, 1), "max_tokens": 32, "batch_size": 2}

    def stop(step: Step) -> None:
        if step.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        represent(encoder, TEXTS, tmp_path, **settings, report=stop)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert len(written) == 2
    stored = represent(encoder, TEXTS, tmp_path, **settings)
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    assert len(stored.read("mean", 1)) == len(TEXTS)


def test_other_texts_are_read_anew(encoder, tmp_path):
    settings = {"poolings": POOLINGS, "layers": (1,), "max_tokens": 32, "batch_size": 2}
    before = represent(encoder, TEXTS, tmp_path, **settings).read("mean", 1)
    after = represent(encoder, TEXTS[::-1], tmp_path, **settings).read("mean", 1)
    np.testing.assert_allclose(before, after[::-1], atol=1e-6)


def planted(rng: np.random.Generator, kind: str, count: int = 400):
    """Vectors whose label is a half-space, or the product of two signs (not linearly readable)."""
    vector_ND = rng.normal(size=(count, 8)).astype(np.float32)
    label_N = vector_ND[:, 0] > 0
    if kind == "product":
        label_N = (vector_ND[:, 0] > 0) ^ (vector_ND[:, 1] > 0)
    return vector_ND, label_N.astype(np.int64)


@pytest.mark.parametrize(
    ("task", "probe", "low", "high"),
    [
        ("half-space", "linear", 0.95, 1.0),
        ("product", "linear", 0.3, 0.65),
        ("product", "mlp", 0.85, 1.0),
    ],
)
def test_a_probe_finds_what_its_kind_can_read(task, probe, low, high):
    rng = np.random.default_rng(0)
    train, test = planted(rng, task), planted(rng, task)
    probed = fit_probe(*train, *test, kind=probe, strength=1.0, seed=0)
    assert low <= probed.accuracy <= high


def test_the_control_of_a_linear_probe_is_near_chance_where_texts_far_outnumber_dimensions():
    vector_ND, label_N = planted(np.random.default_rng(0), "half-space", count=4000)
    linear = control_accuracy(vector_ND, label_N, kind="linear", strength=1.0, seed=0)
    assert 0.5 <= linear < 0.56


def test_an_mlp_memorises_more_of_the_control_than_a_linear_probe():
    vector_ND, label_N = planted(np.random.default_rng(0), "half-space")
    linear, mlp = (
        control_accuracy(vector_ND, label_N, kind=kind, strength=1.0, seed=0)
        for kind in ("linear", "mlp")
    )
    assert mlp > linear + 0.1


def test_control_labels_keep_the_frequencies():
    label_N = np.array([0] * 30 + [1] * 10)
    control_N = control_labels(label_N, seed=3)
    assert np.bincount(control_N).tolist() == [30, 10]
    assert control_N.tolist() != label_N.tolist()
