"""Reading an experiment: what is right is understood, what is wrong is told in one line."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.config.experiment import ExperimentConfig
from pipeline.config.loading import load_config
from pipeline.config.messages import first_error, require
from pipeline.steps.order import experiment_stages
from stages.config import Config

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "configs/quickstart.yaml"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text("name: trial\nsft: {epochs: 3}\nlabeling: {kind: simulated}\n")
    return path


def complaint(path: Path, *sets: str) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        load_config(path, sets)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/one_gpu").glob("*.yaml")), ids=str)
def test_recipes_for_one_gpu_load_and_are_light(path):
    config = load_config(path)
    assert config.name == path.stem
    for stage in (config.sft, config.reward, config.ppo):
        if stage is None:
            continue
        assert stage.activation_checkpointing
        assert stage.adaptation.family == "lora" or stage.precision.masters == "stochastic"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("[!al]*.yaml")), ids=str)
def test_shipped_experiments_are_valid(path: Path):
    assert load_config(path).name


def test_the_quickstart_runs_every_stage():
    stages = [stage.name for stage in experiment_stages(load_config(QUICKSTART), Path("runs/x"))]
    expected = "data sft sample label reward select ppo ppo-ptx evaluate report"
    assert stages == expected.split()


def test_an_override_replaces_one_value(path: Path):
    plain, changed = load_config(path), load_config(path, ["sft.batch_size=7", "seed=3"])
    assert (changed.sft.batch_size, changed.seed) == (7, 3)
    assert changed.sft.epochs == plain.sft.epochs == 3


def test_an_override_of_a_list_goes_by_place(path: Path):
    changed = load_config(
        path,
        [
            "sampling.settings=[{temperature: 1.0}, {temperature: 0.5}]",
            "sampling.settings.1.temperature=0.7",
        ],
    )
    assert [setting.temperature for setting in changed.sampling.settings] == [1.0, 0.7]


def test_scientific_notation_is_a_number_even_where_any_value_goes(path: Path):
    assert load_config(path, ["sft.trainer.adam_epsilon=1e-5"]).sft.trainer == {
        "adam_epsilon": 1e-5
    }


def test_an_override_of_a_section_leaves_alone_what_was_built_on_it():
    changed = load_config(QUICKSTART, ["ppo.kl.coefficient=9"])
    assert changed.ppo is not None
    assert changed.ppo_ptx is not None
    assert changed.ppo.kl.coefficient == 9
    assert changed.ppo_ptx.kl.coefficient < 9


def test_null_leaves_a_stage_out(path: Path):
    config = load_config(path, ["ppo=null"])
    assert "ppo" not in [stage.name for stage in experiment_stages(config, Path("runs/x"))]


def test_a_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        ExperimentConfig(name="x").seed = 3


def test_a_missing_file_is_named(tmp_path: Path):
    assert complaint(tmp_path / "none.yaml").startswith(f"{tmp_path / 'none.yaml'}: no such file")


def test_broken_yaml_names_the_line(path: Path):
    path.write_text("name: x\nsft:\n  epochs: [1\n")
    assert complaint(path).startswith(f"{path}:4: not YAML")


def test_a_key_that_stands_twice_is_refused(path: Path):
    path.write_text("name: x\nseed: 1\nseed: 2\n")
    assert "key 'seed' stands twice" in complaint(path)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("sft.learnin_rate=3", "sft.learnin_rate is not a key; did you mean sft.learning_rate?"),
        ("labeling.taste.rud=3", "is not a key; did you mean labeling.taste.rude?"),
        ("sampling.settings=[{temperatur: 1}]", "did you mean sampling.settings.0.temperature?"),
        ("ppo.kl={kind: fixed, coeficient: 1}", "did you mean ppo.kl.coefficient?"),
        ("zzzz=1", "zzzz is not a key; expected one of name, seed,"),
        ("sft.epochs=0", "sft.epochs is 0; expected greater than 0"),
        ("sft.epochs=many", "sft.epochs is 'many'; expected a whole number"),
        ("sft.adaptation.family=lroa", "family is 'lroa'; expected one of full, probe, lora"),
        ("ppo.kl.kind=loose", "ppo.kl.kind is 'loose'; expected one of fixed, adaptive"),
        ("sampling.responses=[1, 3]", "responses is [1, 3]; expected two numbers, 2 <= low"),
        ("ppo={minibatch: 7}", "minibatch (7) must divide episodes_per_rollout (512)"),
        ("ppo_ptx={episodes: 512}", "ppo_ptx.pretraining is missing"),
        ("name='a b'", "name is 'a b'; expected to match"),
        ("sft.epochs", "--set sft.epochs: expected key.key=value"),
        ("sft.epochs.x.y=1", "--set sft.epochs.x.y: sft.epochs is 3, not a mapping"),
    ],
)
def test_a_mistake_is_told_in_one_line(path: Path, override: str, line: str):
    assert line in complaint(path, override)


def test_simulated_annotators_are_refused_for_the_users_own_prompts(path: Path):
    sets = ["data={kind: files, demonstrations: d, ranking_prompts: p, test_prompts: t}"]
    assert "labeling.kind is 'simulated' but data.kind is 'files'" in complaint(path, *sets)


def test_a_joint_pass_asks_for_a_probe_on_the_model_that_ppo_starts_from(path: Path):
    joint = "ppo.models={kind: joint}"
    probe = "reward.adaptation={family: probe}"
    assert "reward.adaptation.family is full; expected probe" in complaint(path, joint)
    sets = [joint, probe, "reward_base=base"]
    assert "reward_base is base; expected sft" in complaint(path, *sets)
    sets = [joint, probe, "reward_base=sft", "sft_choice=reward"]
    assert "sft_choice is reward; expected loss" in complaint(path, *sets)


def test_a_key_of_an_earlier_version_is_answered_with_its_name_now():
    class Inner(Config):
        renamed = {"kept": "cached"}
        cached: bool = False

    class Outer(Config):
        ppo: Inner = Inner()

    with pytest.raises(ValidationError) as error:
        Outer.model_validate({"ppo": {"kept": True}})
    line = first_error(error.value, Outer)
    assert line == "ppo.kept is called ppo.cached since version 0.2"
    with pytest.raises(ValueError, match=r"taste\.made_up is called labeling\.taste\.hallucinated"):
        load_config(QUICKSTART, ["labeling.taste.made_up=0.1"])


def test_an_extra_that_is_missing_is_named_in_one_line():
    require("benchmarks", "json")
    with pytest.raises(ValueError, match=r"nothing_of_that_name.*instruct-rlhf\[gguf\]'$"):
        require("gguf", "json", "nothing_of_that_name")
