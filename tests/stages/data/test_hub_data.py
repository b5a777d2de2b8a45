"""`hf:` sources: their parts, data sets with several configurations, and lines about mistakes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.runs.manifest import Hashes
from stages.data.demonstrations import load_prompts
from stages.data.hub_data import HubData, commit_of


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("hf:owner/name", HubData("owner/name")),
        ("hf:owner/name:test", HubData("owner/name", split="test")),
        ("hf:owner/name:main:test", HubData("owner/name", "main", "test")),
        ("hf:owner/name:main:", HubData("owner/name", "main")),
        ("hf:name:train[:10%]", HubData("name", split="train[:10%]")),
        ("hf:name:20220301.en:train[5:10]", HubData("name", "20220301.en", "train[5:10]")),
        ("hf:owner/name@v1.2:main:test", HubData("owner/name", "main", "test", "v1.2")),
    ],
)
def test_a_source_names_data_set_revision_configuration_and_split(source: str, parts: HubData):
    assert HubData.parse(source) == parts


@pytest.mark.parametrize("source", ["hf:", "hf::train", "hf:a:b:c:d"])
def test_another_form_is_refused_with_the_forms_there_are(source: str):
    with pytest.raises(
        ValueError, match=r"expected hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT"
    ):
        HubData.parse(source)


def test_a_folder_may_have_a_colon_or_an_at_sign_in_its_name(tmp_path: Path):
    for name in ("a:b", "a@b"):
        (tmp_path / name).mkdir()
        assert HubData.parse(f"hf:{tmp_path / name}") == HubData(str(tmp_path / name))


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    """A folder as the hub has data sets with two configurations."""
    folder = tmp_path / "several"
    for name in ("first", "second"):
        (folder / name).mkdir(parents=True)
        (folder / name / "train.jsonl").write_text(json.dumps({"prompt": name}) + "\n")
    listed = "\n".join(
        f"- config_name: {name}\n  data_files: {name}/train.jsonl" for name in ("first", "second")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{listed}\n---\n")
    return folder


def test_a_configuration_is_chosen_by_name(configured: Path):
    assert [one.prompt for one in load_prompts(f"hf:{configured}:second:train")] == ["second"]


@pytest.mark.parametrize("rest", ["", ":train", ":first", ":third:train"])
def test_a_configuration_that_is_missing_or_wrong_is_one_line_with_all_of_them(
    configured: Path, rest: str
):
    with pytest.raises(ValueError, match=r"first, second; expected one of them named") as caught:
        load_prompts(f"hf:{configured}{rest}")
    assert "\n" not in str(caught.value)
    example = str(caught.value).rpartition("such as ")[2]
    assert [one.prompt for one in load_prompts(example)] == ["first"]


def test_a_file_that_is_no_data_is_one_line(tmp_path: Path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/train.jsonl").write_text("{not json\n")
    with pytest.raises(ValueError, match=r"no data set to be had") as caught:
        load_prompts(f"hf:{tmp_path / 'd'}")
    assert "\n" not in str(caught.value)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of the hub, which is not asked."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit_of.cache_clear()
    yield tmp_path
    commit_of.cache_clear()


def test_a_hub_name_is_told_by_the_commit_that_the_cache_has(cache: Path):
    for kind, commit in (("datasets", "a" * 40), ("models", "b" * 40)):
        refs = cache / f"{kind}--owner--name/refs"
        refs.mkdir(parents=True)
        (refs / "main").write_text(commit)
    hashes = Hashes(cache / ".hashes.json")
    assert hashes.of("owner/name") == f"owner/name@{'b' * 40}"
    assert hashes.of("hf:owner/name:main:test") == f"owner/name@{'a' * 40}:main:test"
    assert hashes.of(f"hf:owner/name@{'c' * 40}") == f"owner/name@{'c' * 40}::train"


def test_a_commit_that_nobody_knows_is_said(cache: Path, caplog: pytest.LogCaptureFixture):
    assert Hashes(cache / ".hashes.json").of("hf:owner/other") == "owner/other@unknown::train"
    assert "owner/other: its commit is unknown" in caplog.text
