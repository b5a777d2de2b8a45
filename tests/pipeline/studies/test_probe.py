"""rlhf probe: the folder it leaves, going on, and one line for each mistake."""

import csv
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.studies.probe import probe
from pipeline.studies.probing import ProbeSettings, load_labelled_texts, split_off
from stages.adapters.config import LoRA
from stages.models import adapt, load_policy, load_tokenizer, save_policy
from tests.reward_models.tiny import tiny_base
from tests.stages.tiny_encoder import WORDS, tiny_encoder


def write_texts(path: Path, count: int, seed: int) -> Path:
    """Write texts whose label is the presence of the word `good`."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [*rng.choices(WORDS[:20], k=4), rng.choice(["good", "bad"])]
        rng.shuffle(words)
        label = "yes" if "good" in words else "no"
        rows.append({"text": " ".join(words), "label": label})
    if path.suffix == ".csv":
        with path.open("w", newline="") as out:
            writer = csv.DictWriter(out, ["text", "label"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_encoder(tmp_path_factory.mktemp("encoder")))


def run(model: str, folder: Path, data: Path, layers: str = "all", **options: object) -> dict:
    settings = ProbeSettings(**options)
    page = probe(model, str(data), None, ("text", "label"), settings, layers, folder)
    assert page.is_file()
    return json.loads((folder / "probe.json").read_text())


def test_the_probe_finds_a_word_by_the_mean_and_says_so_with_intervals(encoder, tmp_path):
    result = run(encoder, tmp_path / "out", write_texts(tmp_path / "t.csv", 300, 0))
    rows = {(row["pooling"], row["layer"]): row for row in result["probes"]}
    assert set(rows) == {(p, n) for p in ("cls", "mean") for n in (0, 1, 2)}
    assert rows["mean", 0]["accuracy"] > 0.9
    assert rows["cls", 0]["accuracy"] < 0.75  # [CLS] has read nothing yet
    low, high = rows["mean", 0]["ci95"]
    assert 0.8 < low < high <= 1.0
    assert rows["mean", 0]["selectivity"] == pytest.approx(
        rows["mean", 0]["accuracy"] - rows["mean", 0]["control_accuracy"]
    )
    assert (result["n_train"], result["n_test"]) == (240, 60)
    page = (tmp_path / "out/probe.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    assert 'class="spans' in page


def test_the_same_command_again_fits_nothing_and_writes_the_same(encoder, tmp_path, monkeypatch):
    data = write_texts(tmp_path / "t.jsonl", 60, 1)
    first = run(encoder, tmp_path / "out", data, layers="0-2:2")
    monkeypatch.setattr("stages.probing.fit_probe", None)
    assert run(encoder, tmp_path / "out", data, layers="0-2:2") == first


def test_other_settings_fit_anew(encoder, tmp_path):
    data = write_texts(tmp_path / "t.jsonl", 60, 1)
    weak = run(encoder, tmp_path / "out", data, "1", strength=1.0)
    strong = run(encoder, tmp_path / "out", data, "1", strength=1e6)
    accuracy = [result["probes"][1]["training_accuracy"] for result in (weak, strong)]
    assert accuracy[0] > accuracy[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "a", "label": "x"}\n{"label": "y"}\n', r"t.jsonl:2: no field 'text'"),
        ('{"text": "", "label": "x"}\n', r"t.jsonl:1: text is ''"),
        ('{"text": "a", "label": null}\n', r"t.jsonl:1: label is None"),
        ('{"text": "a", "label": "x"}\n', r"t.jsonl: 1 label\(s\) in 1 rows"),
        ("a b\n", r"t.jsonl:1: not JSON"),
    ],
)
def test_bad_texts_are_refused_by_line(tmp_path, text, message):
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_labelled_texts(str(tmp_path / "t.jsonl"))


def test_a_short_line_of_a_csv_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\na,x\nb\n")
    with pytest.raises(ValueError, match=r"t\.csv:3: 1 values, expected 2"):
        load_labelled_texts(str(tmp_path / "t.csv"))


def test_an_unknown_layer_and_an_unknown_ending_are_refused(encoder, tmp_path):
    data = write_texts(tmp_path / "t.jsonl", 20, 1)
    with pytest.raises(ValueError, match=r"layer 9: .* has layers 0 \(embeddings\) to 2"):
        run(encoder, tmp_path / "out", data, layers="0,9")
    with pytest.raises(ValueError, match=r"--layers 1-x: expected all"):
        run(encoder, tmp_path / "out", data, layers="1-x")
    with pytest.raises(ValueError, match=r"t.parquet: no such file"):
        load_labelled_texts("t.parquet")


def test_held_out_texts_are_a_share_of_the_whole_and_in_no_other_part(tmp_path):
    data = load_labelled_texts(str(write_texts(tmp_path / "t.jsonl", 50, 1)))
    train, test = split_off(data, 0.2, seed=0)
    assert (len(train), len(test)) == (40, 10)
    assert sorted(train + test) == sorted(data)


def test_a_label_that_was_never_trained_is_refused(tmp_path):
    for name, label in (("train", "b"), ("test", "c")):
        rows = [{"text": "x", "label": "a"}, {"text": "y", "label": label}]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, test = str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")
    with pytest.raises(ValueError, match=r"test\.jsonl: label 'c' is among the test texts but not"):
        probe("no model", train, test, ("text", "label"), ProbeSettings(), "all", tmp_path / "out")


def test_a_data_set_of_the_hubs_library_is_read_by_name(tmp_path):
    write_texts(tmp_path / "train.jsonl", 5, 1)
    own = load_labelled_texts(str(tmp_path / "train.jsonl"))
    assert load_labelled_texts(f"hf:{tmp_path}:train") == own


def test_an_adapters_folder_is_probed_as_the_policy_it_makes(tmp_path):
    base = tiny_base(tmp_path / "base")
    policy = adapt(load_policy(base), LoRA(rank=2))
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.5)
    save_policy(policy, load_tokenizer(base), tmp_path / "policy")
    data = write_texts(tmp_path / "t.jsonl", 60, 1)
    for name in ("base", "policy"):
        run(str(tmp_path / name), tmp_path / f"{name}-out", data, control=False)
    stored = [
        load_file(str(tmp_path / f"{name}-out/representations/00000.safetensors"))
        for name in ("base", "policy")
    ]
    assert torch.equal(stored[0]["last.0"], stored[1]["last.0"])  # the embeddings are the base's
    assert not torch.allclose(stored[0]["last.2"], stored[1]["last.2"], atol=1e-2)
