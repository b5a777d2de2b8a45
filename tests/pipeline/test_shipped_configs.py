import re
from pathlib import Path

import pytest
import yaml

from pipeline.config.loading import load_config
from pipeline.config.shipped import (
    config_file,
    configs_folder,
    shipped_experiments,
    write_own_config,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("demonstrations", "ranking_prompts", "test_prompts"):
        (folder / f"{name}.jsonl").write_text('{"prompt": "Hello", "response": "Hi."}\n')
    return folder


def complaint(action, *arguments) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["quickstart", "quickstart.yaml", "configs/quickstart.yaml", "smollm2", "instructgpt/6b"],
)
def test_a_shipped_config_is_taken_by_name_in_an_empty_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_file(Path(name)).is_relative_to(configs_folder())


def test_every_shipped_experiment_loads_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(shipped_experiments()) >= 5
    for name in shipped_experiments():
        assert load_config(Path(name)).name


def test_a_file_beside_comes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart.yaml").write_text("name: own")
    assert load_config(Path("quickstart")).name == "own"


def test_an_unknown_name_is_refused_with_those_that_are_shipped(tmp_path):
    line = complaint(config_file, tmp_path / "none.yaml")
    assert line.startswith(f"{tmp_path / 'none.yaml'}: no such file")
    assert "quickstart" in line


def test_init_writes_the_quickstart_under_a_name(tmp_path):
    path = write_own_config(tmp_path / "mine", None, None, None, None)
    config, shipped = load_config(path), load_config(Path("quickstart"))
    assert config == shipped.model_copy(update={"name": "mine"})
    assert not re.search("quickstart.yaml", path.read_text())


@pytest.mark.parametrize("rankings", [False, True])
@pytest.mark.parametrize("texts", [False, True])
@pytest.mark.parametrize("family", [None, "full", "prefix"])
def test_init_writes_a_config_that_run_accepts(data, tmp_path, rankings, texts, family):
    pairs = data / "pairs.jsonl" if rankings else None
    if pairs is not None:
        pairs.write_text('{"prompt": "Hello", "chosen": "Hi.", "rejected": "No."}\n')
    if texts:
        (data / "pretraining_texts.jsonl").write_text('{"text": "A text."}\n')
    path = write_own_config(tmp_path / "mine.yaml", "owner/model", data, pairs, family)
    config = load_config(path)
    assert (config.name, config.model) == ("mine", "owner/model")
    assert config.labeling.kind == ("imported" if rankings else "human")
    assert config.sft.adaptation.family == (family or "lora")
    assert (config.ppo_ptx is not None) == texts
    assert path.read_text().count("#") > 10
    assert yaml.safe_load(path.read_text())["data"]["demonstrations"].startswith(str(data))


def test_init_refuses_in_one_line(data, tmp_path):
    existing = tmp_path / "mine.yaml"
    existing.write_text("")
    new = tmp_path / "new"
    assert "already exists" in complaint(write_own_config, existing, None, None, None, None)
    assert "--model" in complaint(write_own_config, new, None, data, None, None)
    assert "--data" in complaint(write_own_config, new, "m", None, data / "pairs.jsonl", None)
    assert "lroa; expected one of full" in complaint(
        write_own_config, new, None, None, None, "lroa"
    )
    (data / "test_prompts.jsonl").unlink()
    assert "test_prompts" in complaint(write_own_config, new, "m", data, None, None)
    assert not new.with_suffix(".yaml").exists()
