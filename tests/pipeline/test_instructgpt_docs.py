"""docs/instructgpt.md says what the code does: its defaults, and the tests of its details."""

import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainingArguments

from pipeline.config.experiment import ExperimentConfig, FileSource
from stages.ppo.config import PPOConfig, PretrainingMix
from stages.reward.train import _arguments as reward_arguments
from stages.sft.config import SFTConfig, SupervisedMix
from stages.sft.train import _arguments as sft_arguments

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/instructgpt.md").read_text(encoding="utf-8")
# The defaults, with the parts that are left out by default put in.
DEFAULTS = ExperimentConfig(
    name="defaults",
    ppo_init=SFTConfig(pretraining=SupervisedMix()),
    ppo_ptx=PPOConfig(pretraining=PretrainingMix()),
)


def table(heading: str) -> list[list[str]]:
    """The rows of the table under a heading, without its head."""
    section = PAGE.partition(f"## {heading}")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


SILENT = table("What the paper does not say")
DATA = table("What the paper says about its data, and what is done here")
DETAILS = table("Twenty-five implementation details")


def value(key: str) -> Any:
    """The default of a config's key, or a constant of a module."""
    if key.startswith("stages."):
        module, _, name = key.rpartition(".")
        return vars(importlib.import_module(module))[name]
    stage, _, argument = key.partition(".trainer.")
    if argument:
        return vars(arguments(stage))[argument]
    results: Any = DEFAULTS.model_dump(mode="json")
    for part in key.split("."):
        results = results[int(part)] if isinstance(results, list) else results[part]
    return results


@cache
def arguments(stage: str) -> TrainingArguments:
    """The arguments of transformers' Trainer by default."""
    if stage == "sft":
        return sft_arguments(DEFAULTS.sft, Path("unused"), 0, validated=False)
    return reward_arguments(DEFAULTS.reward, Path("unused"), 0)


@cache
def names_in(path: str) -> set[str]:
    return set(re.findall(r"^def (test_\w+)\(", (ROOT / path).read_text(encoding="utf-8"), re.M))


@pytest.mark.parametrize("row", SILENT, ids=lambda row: row[0])
def test_a_documented_default_is_the_default_of_the_code(row: list[str]) -> None:
    assert len(row) == 5
    _, output, choice, key, default = row
    assert output
    assert choice
    if key or default:
        assert value(key.strip("`")) == yaml.safe_load(default.strip("`"))


def test_no_item_without_a_key_but_those_that_are_no_setting() -> None:
    assert [row[0] for row in SILENT if not row[3]] == ["Whitening of rewards"]


def test_all_25_details_are_there_in_order() -> None:
    assert [row[0] for row in DETAILS] == [str(number) for number in range(1, 26)]


@pytest.mark.parametrize("row", DETAILS, ids=lambda row: row[0])
def test_a_detail_has_a_test_that_exists_or_a_reason(row: list[str]) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row[2])
    missing = [f"{path}::{name}" for path, name in named if name not in names_in(path)]
    assert missing == []
    assert named or row[2].startswith("Not checked: ")
    assert "`" not in re.sub(r"`tests/[\w/]+\.py::test_\w+`", "", row[2])


@pytest.mark.parametrize("row", DATA, ids=lambda row: row[0][:40])
def test_what_is_done_with_data_has_a_test_that_exists_or_is_said_not_to_be(row: list[str]) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row[2])
    assert [path for path, name in named if name not in names_in(path)] == []
    assert named or row[1].startswith("Not checked: ")


def test_limits_of_the_data_are_off_unless_they_are_set() -> None:
    files = {"demonstrations": "a", "ranking_prompts": "b", "test_prompts": "c"}
    source = FileSource(kind="files", **files)
    assert source.prompts_per_user is source.shared_prefix is None


@pytest.mark.parametrize("size", ["1.3b", "6b", "175b"])
def test_what_a_preset_marks_silent_stands_in_the_table(size: str) -> None:
    text = (ROOT / f"configs/instructgpt/{size}.yaml").read_text(encoding="utf-8")
    marked = [line for line in text.partition("seed: 0")[2].splitlines() if "SILENT" in line]
    keys = {line.split(":")[0].strip(" -{") for line in marked}
    documented = {row[3].strip("`") for row in SILENT}
    last = {key.rpartition(".")[2] for key in documented} | documented
    sampling = {"temperature"}  # of settings written on one line
    assert keys - last - sampling == set()
    assert len(marked) > 15
